_base_ = './resnetv1c50_4xb128-90e_in1k.py'
model = dict(backbone=dict(type='repl_mm.ReplResNetV1c', repl=dict(policy='interval', every=4)))
