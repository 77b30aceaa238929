_base_ = ['mmpretrain::_base_/models/resnet34.py', './_adamw_1xb128-100e_in1k.py']
model = dict(backbone=dict(type='repl_mm.ReplResNet'))
