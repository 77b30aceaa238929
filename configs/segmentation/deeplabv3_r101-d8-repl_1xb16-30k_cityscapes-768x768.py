_base_ = './deeplabv3_r101-d8_1xb16-30k_cityscapes-768x768.py'
model = dict(backbone=dict(type='repl_mm.ReplResNetV1c', repl=dict(policy='interval', every=4)))
