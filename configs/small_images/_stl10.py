# STL-10's labelled images as in the paper: 4 pixels of padding, random crop, flip.
_base_ = 'mmpretrain::_base_/default_runtime.py'

data_preprocessor = dict(num_classes=10, mean=[113.91, 112.15, 103.69], std=[66.42, 65.43, 69.18], to_rgb=False)
train_pipeline = [
    dict(type='RandomCrop', crop_size=96, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=1024,
    num_workers=4,
    dataset=dict(type='repl_mm.STL10', data_root='data/stl10', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=1000,
    num_workers=2,
    dataset=dict(type='repl_mm.STL10', data_root='data/stl10', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type='repl_mm.CostHook')]
