_base_ = './deeplabv3plus_r50-d8_1xb16-30k_cityscapes-768x768.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
