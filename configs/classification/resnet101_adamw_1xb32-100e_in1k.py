# The 2024 paper's deeper networks: batch 32, AdamW 0.01.
_base_ = ['mmpretrain::_base_/models/resnet101.py', './_adamw_1xb128-100e_in1k.py']
model = dict(backbone=dict(type='repl_mm.ReplResNet'))
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=32)
