_base_ = './deeplabv3plus_r34-d8_digits.py'
model = dict(backbone=dict(repl=dict(policy='budget', every=4)))
