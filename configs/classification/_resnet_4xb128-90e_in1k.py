# The paper's ImageNet recipe for residual networks: 4 GPUs, batch 512, SGD 0.2, 90 epochs, random crop and flip.
# Momentum, weight decay and the steps of the learning rate are not in the paper; they are the customary ones.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64.py', 'mmpretrain::_base_/default_runtime.py']

train_dataloader = dict(batch_size=128)
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60], gamma=0.1)
auto_scale_lr = dict(base_batch_size=512)
custom_hooks = [dict(type='repl_mm.CostHook')]
