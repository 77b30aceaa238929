_base_ = './retinanet_r34_fpn_digits.py'
model = dict(backbone=dict(repl=dict(policy='budget', every=4)))
