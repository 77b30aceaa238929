_base_ = ['mmseg::_base_/models/deeplabv3_r50-d8.py', './_1xb16-30k_768x768.py']
model = dict(
    data_preprocessor=dict(size=(768, 768)),
    pretrained=None,
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')),
)
