# Not in the paper's tables; the start of DeepLabV3 and V3+ R101.
_base_ = './resnetv1c50_4xb128-90e_in1k.py'
model = dict(backbone=dict(depth=101))
