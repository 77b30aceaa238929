# Table XIII of the 2026 paper: a ViT-S/16 of ImageNet is fine-tuned, batch 512, AdamW 2e-4, 100 epochs. It leaves open
# which checkpoint, the size of the images (the same memory for all three sets says that it is one for all),
# augmentation, weight decay and schedule. Here: our ImageNet recipe's checkpoint, each set's own augmentation and then
# 224 pixels, for which the checkpoint was made, and the customary rest.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='repl_mm.ReplViT',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/vit-small-p16_4xb256-90e_in1k/epoch_90.pth',
            prefix='backbone.',
        ),
    ),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead', num_classes=10, in_channels=384, loss=dict(type='CrossEntropyLoss'), topk=(1,)
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, convert_to_iter_based=True),
]
