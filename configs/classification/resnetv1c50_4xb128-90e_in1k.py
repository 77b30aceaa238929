# Not in the paper's tables; the start of DeepLabV3 and V3+ R50.
_base_ = ['mmpretrain::_base_/models/resnetv1c50.py', './_resnet_4xb128-90e_in1k.py']
