_base_ = './deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
model = dict(backbone=dict(type='repl_mm.ReplResNetV1c', repl=dict(policy='interval', every=4)))
