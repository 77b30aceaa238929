_base_ = './retinanet_r50_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(type='repl_mm.ReplResNet', repl=dict(policy='interval', every=4)))
