# Table V: the interval.
title = 'Table V (2026): the interval K, CIFAR-10'
metric = 'accuracy/top1'
seeds = 5
smaller = (
    'ResNet-32 for ResNet-110, which has no site at K = 6; Fashion-MNIST in the place of the published sets, '
    '10,000 of its 60,000 training images, 12 of 250 epochs at a batch of 64'
)
rows = [
    dict(
        name='ResNet-110: E2E',
        config='../small_images/resnet110_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=93.49, memory_gb=9.31, epoch_s=26.19),
    ),
    dict(
        name='ResNet-110: RepL, K = 2',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.every': 2},
        versus='ResNet-110: E2E',
        published=dict(score=92.67, memory_gb=6.25, epoch_s=18.05),
    ),
    dict(
        name='ResNet-110: RepL, K = 4',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-110: E2E',
        published=dict(score=94.01, memory_gb=7.62, epoch_s=20.93),
    ),
    dict(
        name='ResNet-110: RepL, K = 6',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        options={'model.backbone.repl.every': 6},
        versus='ResNet-110: E2E',
        published=dict(score=94.11, memory_gb=8.63, epoch_s=23.94),
        note='Eq. 2 finds no site in a stage of 5 blocks: no row in the small profile',
    ),
    dict(
        name='ViT-T/8: E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=72.77, memory_gb=2.81, epoch_s=6.81),
    ),
    dict(
        name='ViT-T/8: RepL, K = 2',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.every': 2},
        versus='ViT-T/8: E2E',
        published=dict(score=71.48, memory_gb=1.7, epoch_s=5.19),
    ),
    dict(
        name='ViT-T/8: RepL, K = 4',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/8: E2E',
        published=dict(score=73.71, memory_gb=2.08, epoch_s=5.65),
    ),
    dict(
        name='ViT-T/8: RepL, K = 6',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.every': 6},
        versus='ViT-T/8: E2E',
        published=dict(score=73.94, memory_gb=2.39, epoch_s=6.39),
        note='the published memory falls by 14.9 %, more than the removed block of 12 can give (8.3 %)',
    ),
]
