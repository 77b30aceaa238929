_base_ = ['./_stl10.py', './_vit-tiny-p8.py', './_adamw_1xb1024-250e.py']
model = dict(backbone=dict(arch='base', img_size=96), head=dict(in_channels=768))
