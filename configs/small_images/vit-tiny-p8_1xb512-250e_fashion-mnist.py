_base_ = ['./_fashion-mnist.py', './_vit-tiny-p8_1xb512-250e.py']
# Patches of 8 pixels need 32: the images are padded by 2, and by 2 more before the random crop.
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='RandomCrop', crop_size=32, padding=2), dict(type='PackInputs')]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
