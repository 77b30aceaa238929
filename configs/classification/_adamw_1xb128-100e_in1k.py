# The recipe of the 2024 paper (supplement A.1) for ImageNet: batch 128, AdamW 0.04, weight decay 1e-4, 100 epochs.
# It tells neither schedule, nor augmentation, nor the number of GPUs: its cosine for small images, crop and flip, one.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64.py', 'mmpretrain::_base_/default_runtime.py']

train_dataloader = dict(batch_size=128)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.04, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)
auto_scale_lr = dict(base_batch_size=128)
custom_hooks = [dict(type='repl_mm.CostHook')]
