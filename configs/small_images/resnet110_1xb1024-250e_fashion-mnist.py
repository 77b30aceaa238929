_base_ = ['./_fashion-mnist.py', './_resnet_1xb1024-250e.py']
model = dict(backbone=dict(depth=110))
