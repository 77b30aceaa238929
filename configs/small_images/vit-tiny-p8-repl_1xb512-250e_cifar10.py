_base_ = './vit-tiny-p8_1xb512-250e_cifar10.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4, mlp_fusion=True)))
