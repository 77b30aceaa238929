# The recipe of the 2024 paper (supplement A.1) for small images: batch 1024, AdamW 0.01, weight decay 1e-4, cosine,
# 250 epochs. It names no warm-up, no augmentation, no patch size and no size of STL-10: those of the 2026 paper stand.
train_cfg = dict(by_epoch=True, max_epochs=250, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)
