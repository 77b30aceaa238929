_base_ = './_digits.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplViT', arch='deit-tiny', img_size=32, patch_size=8),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead', num_classes=10, in_channels=192, loss=dict(type='CrossEntropyLoss'), topk=(1,)
    ),
)

epochs = 20
train_dataloader = dict(batch_size=32)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05))
param_scheduler = dict(
    type='OneCycleLR', eta_max=5e-4, by_epoch=True, total_steps=epochs, convert_to_iter_based=True, pct_start=0.2
)
