_base_ = ['./_stl10.py', './_vit-tiny-p8_1xb512-250e.py']
model = dict(backbone=dict(img_size=96))
train_dataloader = dict(batch_size=512)
