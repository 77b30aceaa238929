_base_ = './retinanet_vit-base-p16_sfp_8xb2-1x_coco.py'
model = dict(backbone=dict(type='repl_mm.ReplViT', repl=dict(policy='interval', every=4, mlp_fusion=True)))
