# Not in the paper's tables; the start of RetinaNet-R50.
_base_ = ['mmpretrain::_base_/models/resnet50.py', './_resnet_4xb128-90e_in1k.py']
