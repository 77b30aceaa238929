# The paper's recipe for ViT-Tiny/8 on small images: one GPU, batch 512, AdamW 1e-3, 250 epochs.
# Weight decay, warm-up and the cosine are not in the paper; they are the customary ones.
_base_ = './_vit-tiny-p8.py'

train_cfg = dict(by_epoch=True, max_epochs=250, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, convert_to_iter_based=True),
]
