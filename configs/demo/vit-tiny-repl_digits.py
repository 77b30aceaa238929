_base_ = './vit-tiny_digits.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4, mlp_fusion=True)))
