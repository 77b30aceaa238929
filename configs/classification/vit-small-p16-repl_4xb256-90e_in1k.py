_base_ = './vit-small-p16_4xb256-90e_in1k.py'
model = dict(backbone=dict(type='repl_mm.ReplViT', repl=dict(policy='interval', every=4, mlp_fusion=True)))
