# Table VII: one neighbour or both.
title = 'Table VII (2026): neighbours, CIFAR-10'
metric = 'accuracy/top1'
seeds = 5
smaller = (
    'ResNet-32 for ResNet-110; Fashion-MNIST in the place of the published sets, 10,000 of its 60,000 training'
    ' images, 12 of 250 epochs at a batch of 64'
)
rows = [
    dict(
        name='ResNet-110: E2E',
        config='../small_images/resnet110_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=93.49),
    ),
    dict(
        name='ResNet-110: the succeeding block alone',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.neighbours': 'next'},
        versus='ResNet-110: E2E',
        published=dict(score=93.19),
    ),
    dict(
        name='ResNet-110: the preceding block alone',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.neighbours': 'prev'},
        versus='ResNet-110: E2E',
        published=dict(score=91.75),
    ),
    dict(
        name='ResNet-110: both',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-110: E2E',
        published=dict(score=94.01),
    ),
    dict(
        name='ViT-T/8: E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=72.77),
    ),
    dict(
        name='ViT-T/8: the succeeding block alone',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.neighbours': 'next'},
        versus='ViT-T/8: E2E',
        published=dict(score=72.18),
    ),
    dict(
        name='ViT-T/8: the preceding block alone',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.neighbours': 'prev'},
        versus='ViT-T/8: E2E',
        published=dict(score=69.37),
    ),
    dict(
        name='ViT-T/8: both',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/8: E2E',
        published=dict(score=73.71),
    ),
]
