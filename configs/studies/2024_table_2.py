# Table 2 of the 2024 paper: ImageNet, with that paper's form and recipe; no small profile.
title = 'Table 2 (2024): ImageNet'
metric = 'accuracy/top1'
seeds = 1
rows = [
    dict(
        name='ViT-B: E2E',
        config='../classification/vit-base-p16_adamw_1xb128-100e_in1k.py',
        published=dict(score=49.88, memory_gb=19.03, epoch_s=4673),
    ),
    dict(
        name='ViT-B: RepL',
        config='../classification/vit-base-p16_adamw_1xb128-100e_in1k.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ViT-B: E2E',
        published=dict(score=50.82, memory_gb=18.63, epoch_s=4578),
    ),
    dict(
        name='ResNet-34: E2E',
        config='../classification/resnet34_adamw_1xb128-100e_in1k.py',
        published=dict(score=55.49, memory_gb=17.46, epoch_s=3493),
    ),
    dict(
        name='ResNet-34: RepL',
        config='../classification/resnet34_adamw_1xb128-100e_in1k.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ResNet-34: E2E',
        published=dict(score=57.06, memory_gb=17.03, epoch_s=3391),
    ),
    dict(
        name='ResNet-101: E2E',
        config='../classification/resnet101_adamw_1xb32-100e_in1k.py',
        published=dict(score=53.1, memory_gb=17.03, epoch_s=10268),
    ),
    dict(
        name='ResNet-101: RepL',
        config='../classification/resnet101_adamw_1xb32-100e_in1k.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ResNet-101: E2E',
        published=dict(score=54.76, memory_gb=16.38, epoch_s=10029),
    ),
    dict(
        name='ResNet-152: E2E',
        config='../classification/resnet152_adamw_1xb32-100e_in1k.py',
        published=dict(score=51.49, memory_gb=23.17, epoch_s=14478),
    ),
    dict(
        name='ResNet-152: RepL',
        config='../classification/resnet152_adamw_1xb32-100e_in1k.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ResNet-152: E2E',
        published=dict(score=53.18, memory_gb=22.9, epoch_s=14159),
    ),
]
