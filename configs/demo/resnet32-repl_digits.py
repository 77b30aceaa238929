_base_ = './resnet32_digits.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4)))
