_base_ = ['./_cifar10.py', './_vit-tiny-p8_1xb512-250e.py']
train_dataloader = dict(batch_size=512)
