_base_ = ['./_stl10.py', './_resnet.py', './_adamw_1xb1024-250e.py']
model = dict(backbone=dict(depth=110))
