_base_ = './vit-tiny-p8_1xb512-250e_fashion-mnist.py'
model = dict(backbone=dict(type='repl_mm.SkipAttentionViT'))
