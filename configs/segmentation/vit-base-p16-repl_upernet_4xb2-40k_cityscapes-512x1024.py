_base_ = './vit-base-p16_upernet_4xb2-40k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='repl_mm.ReplViT', repl=dict(policy='interval', every=4, mlp_fusion=True)))
