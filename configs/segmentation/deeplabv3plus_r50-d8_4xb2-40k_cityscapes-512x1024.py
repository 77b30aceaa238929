_base_ = ['mmseg::_base_/models/deeplabv3plus_r50-d8.py', './_4xb2-40k_512x1024.py']
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    pretrained=None,
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')),
)
