# The paper's recipe for residual networks on small images: one GPU, batch 1024, SGD 0.8, 250 epochs.
# Momentum, weight decay, warm-up and the cosine are not in the paper; they are the customary ones.
_base_ = './_resnet.py'

train_cfg = dict(by_epoch=True, max_epochs=250, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.8, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, convert_to_iter_based=True),
]
