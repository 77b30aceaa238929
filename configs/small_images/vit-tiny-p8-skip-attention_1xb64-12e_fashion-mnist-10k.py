_base_ = './vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py'
model = dict(backbone=dict(type='repl_mm.SkipAttentionViT'))
