_base_ = './resnet32_1xb1024-250e_cifar10.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4)))
