# Three times as long.
_base_ = './resnet32_1xb64-12e_fashion-mnist-10k.py'

epochs = 36
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type='OneCycleLR', eta_max=0.1, by_epoch=True, total_steps=epochs, convert_to_iter_based=True, pct_start=0.2)
]
