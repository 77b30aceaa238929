_base_ = './resnet50_4xb128-90e_in1k.py'
model = dict(backbone=dict(type='repl_mm.ReplResNet', repl=dict(policy='interval', every=4)))
