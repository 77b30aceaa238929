# Residual networks for small images; their depth is set where they are used.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplResNetCIFAR', zero_init_residual=False),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
)
