_base_ = ['./_svhn.py', './_resnet.py', './_adamw_1xb1024-250e.py']
model = dict(backbone=dict(depth=110))
