# CityScapes as mmseg has it, with data that is checked, and test-time flip.
_base_ = ['mmseg::_base_/datasets/cityscapes.py', 'mmseg::_base_/default_runtime.py']

train_dataloader = dict(dataset=dict(type='repl_mm.CityscapesDataset'))
val_dataloader = dict(dataset=dict(type='repl_mm.CityscapesDataset'))
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0, direction='horizontal')],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
custom_hooks = [dict(type='repl_mm.CostHook')]
