# Table 3 of the 2024 paper: trained on CIFAR-10, scored on STL-10; no small profile.
title = 'Table 3 (2024): from CIFAR-10 to STL-10'
metric = 'accuracy/top1'
seeds = 5
rows = [
    dict(
        name='ResNet-32: E2E',
        config='../small_images/resnet32_adamw_1xb1024-250e_cifar10-to-stl10.py',
        published=dict(score=36.88),
    ),
    dict(
        name='ResNet-32: RepL',
        config='../small_images/resnet32_adamw_1xb1024-250e_cifar10-to-stl10.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ResNet-32: E2E',
        published=dict(score=37.95),
    ),
    dict(
        name='ResNet-110: E2E',
        config='../small_images/resnet110_adamw_1xb1024-250e_cifar10-to-stl10.py',
        published=dict(score=39.19),
    ),
    dict(
        name='ResNet-110: RepL',
        config='../small_images/resnet110_adamw_1xb1024-250e_cifar10-to-stl10.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ResNet-110: E2E',
        published=dict(score=39.76),
    ),
    dict(
        name='ViT-B: E2E',
        config='../small_images/vit-base-p8_adamw_1xb1024-250e_cifar10-to-stl10.py',
        published=dict(score=28.31),
    ),
    dict(
        name='ViT-B: RepL',
        config='../small_images/vit-base-p8_adamw_1xb1024-250e_cifar10-to-stl10.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ViT-B: E2E',
        published=dict(score=30.14),
    ),
    dict(
        name='ViT-L: E2E',
        config='../small_images/vit-large-p8_adamw_1xb1024-250e_cifar10-to-stl10.py',
        published=dict(score=26.25),
    ),
    dict(
        name='ViT-L: RepL',
        config='../small_images/vit-large-p8_adamw_1xb1024-250e_cifar10-to-stl10.py',
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='ViT-L: E2E',
        published=dict(score=28.02),
    ),
]
