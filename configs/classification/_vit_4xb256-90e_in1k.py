# The paper's ImageNet recipe for Vision Transformers: 4 GPUs, batch 1024, AdamW 7.5e-4, 90 epochs, random crop, flip.
# Weight decay, warm-up and the cosine are not in the paper; they are the customary ones.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64.py', 'mmpretrain::_base_/default_runtime.py']

train_dataloader = dict(batch_size=256)
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=7.5e-4, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [dict(type='repl_mm.CostHook')]
