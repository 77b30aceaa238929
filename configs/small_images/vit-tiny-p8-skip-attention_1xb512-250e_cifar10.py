_base_ = './vit-tiny-p8_1xb512-250e_cifar10.py'
model = dict(backbone=dict(type='repl_mm.SkipAttentionViT'))
