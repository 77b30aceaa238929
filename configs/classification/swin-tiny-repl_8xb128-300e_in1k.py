_base_ = './swin-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(type='repl_mm.ReplSwin', repl=dict(policy='interval', every=4, mlp_fusion=True)))
