_base_ = './retinanet_r50_fpn_4xb2-100e_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
