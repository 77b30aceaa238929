_base_ = './retinanet_r101_fpn_4xb2-100e_coco.py'
model = dict(backbone=dict(type='repl_mm.ReplResNet', repl=dict(policy='interval', every=4)))
