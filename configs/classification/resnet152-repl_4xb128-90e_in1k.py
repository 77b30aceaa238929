_base_ = './resnet152_4xb128-90e_in1k.py'
model = dict(backbone=dict(type='repl_mm.ReplResNet', repl=dict(policy='interval', every=4)))
