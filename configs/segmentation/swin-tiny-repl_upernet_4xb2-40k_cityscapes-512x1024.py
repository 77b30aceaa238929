_base_ = './swin-tiny_upernet_4xb2-40k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='repl_mm.ReplSwin', repl=dict(policy='interval', every=4, mlp_fusion=True)))
