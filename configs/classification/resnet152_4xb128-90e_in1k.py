_base_ = ['mmpretrain::_base_/models/resnet152.py', './_resnet_4xb128-90e_in1k.py']
