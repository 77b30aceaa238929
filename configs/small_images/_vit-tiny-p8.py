# ViT-Tiny with patches of 8 pixels.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplViT', arch='deit-tiny', img_size=32, patch_size=8),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead', num_classes=10, in_channels=192, loss=dict(type='CrossEntropyLoss'), topk=(1,)
    ),
)
