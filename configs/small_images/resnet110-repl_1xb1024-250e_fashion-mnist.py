_base_ = './resnet110_1xb1024-250e_fashion-mnist.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4)))
