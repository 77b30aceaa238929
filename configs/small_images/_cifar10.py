# CIFAR-10 as in the paper: 4 pixels of reflection, random crop, flip.
_base_ = 'mmpretrain::_base_/default_runtime.py'

data_preprocessor = dict(num_classes=10, mean=[125.307, 122.961, 113.8575], std=[62.993, 62.089, 66.705], to_rgb=False)
train_pipeline = [
    # The host's crop heeds the mode of its padding on images that are smaller than it alone.
    dict(type='RandomCrop', crop_size=40, pad_if_needed=True, padding_mode='reflect'),
    dict(type='RandomCrop', crop_size=32),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=1024,
    num_workers=4,
    dataset=dict(type='repl_mm.CIFAR10', data_root='data/cifar10', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=1000,
    num_workers=2,
    dataset=dict(type='repl_mm.CIFAR10', data_root='data/cifar10', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type='repl_mm.CostHook')]
