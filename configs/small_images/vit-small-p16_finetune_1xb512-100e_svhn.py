_base_ = ['./_svhn.py', './_vit-small-p16_finetune_1xb512-100e.py']

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])  # ImageNet's
resize = dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic')
train_pipeline = [*_base_.train_pipeline[:-1], resize, dict(type='PackInputs')]
test_pipeline = [resize, dict(type='PackInputs')]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=250, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
