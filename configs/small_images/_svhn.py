# SVHN as in the paper, without the extra images: 2 pixels of padding, random crop, no flip.
_base_ = 'mmpretrain::_base_/default_runtime.py'

data_preprocessor = dict(num_classes=10, mean=[111.61, 113.16, 120.57], std=[50.50, 51.26, 50.24], to_rgb=False)
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=1024,
    num_workers=4,
    dataset=dict(type='repl_mm.SVHN', data_root='data/svhn', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=1000,
    num_workers=2,
    dataset=dict(type='repl_mm.SVHN', data_root='data/svhn', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type='repl_mm.CostHook')]
