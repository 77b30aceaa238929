_base_ = './vit-tiny-p8_1xb512-250e_fashion-mnist.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4, mlp_fusion=True)))
