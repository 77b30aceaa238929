# For two CPU cores: 10,000 of the 60,000 training images, 12 epochs, scored at the end on all test images.
_base_ = './resnet32_1xb1024-250e_fashion-mnist.py'

epochs = 12
train_dataloader = dict(batch_size=64, num_workers=0, dataset=dict(indices=10000))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=0.1, by_epoch=True, total_steps=epochs, convert_to_iter_based=True, pct_start=0.2)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
