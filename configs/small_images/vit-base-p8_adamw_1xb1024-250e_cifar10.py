_base_ = ['./_cifar10.py', './_vit-tiny-p8.py', './_adamw_1xb1024-250e.py']
model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
