_base_ = ['./_cifar10-to-stl10.py', './_vit-tiny-p8.py', './_adamw_1xb1024-250e.py']
model = dict(backbone=dict(arch='large'), head=dict(in_channels=1024))
