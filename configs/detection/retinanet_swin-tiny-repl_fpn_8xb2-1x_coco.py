_base_ = './retinanet_swin-tiny_fpn_8xb2-1x_coco.py'
model = dict(backbone=dict(type='repl_mm.ReplSwin', repl=dict(policy='interval', every=4, mlp_fusion=True)))
