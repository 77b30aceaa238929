_base_ = './_digits.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplResNetCIFAR', depth=32, zero_init_residual=False),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1,),
        init_cfg=None,  # torch's own; mmpretrain's small one loses the first epochs of a run this short
    ),
)

epochs = 8
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(
    type='OneCycleLR', eta_max=0.1, div_factor=2.0, by_epoch=True, total_steps=epochs, convert_to_iter_based=True
)
