# Table XIII: fine-tuning ViT-S/16 from ImageNet; no small profile, as it starts from a published network.
title = 'Table XIII (2026): fine-tuning ViT-S/16'
metric = 'accuracy/top1'
seeds = 3
rows = [
    dict(
        name='CIFAR-10: E2E',
        config='../small_images/vit-small-p16_finetune_1xb512-100e_cifar10.py',
        published=dict(score=95.66, memory_gb=25.56, epoch_s=32.45),
    ),
    dict(
        name='CIFAR-10: RepL',
        config='../small_images/vit-small-p16-repl_finetune_1xb512-100e_cifar10.py',
        versus='CIFAR-10: E2E',
        published=dict(score=95.89, memory_gb=20.14, epoch_s=25.18),
        note='25.56 GB at batch 512, 21.05 GB on ImageNet at 256 a GPU',
    ),
    dict(
        name='SVHN: E2E',
        config='../small_images/vit-small-p16_finetune_1xb512-100e_svhn.py',
        published=dict(score=96.92, memory_gb=25.56, epoch_s=48.44),
    ),
    dict(
        name='SVHN: RepL',
        config='../small_images/vit-small-p16-repl_finetune_1xb512-100e_svhn.py',
        versus='SVHN: E2E',
        published=dict(score=96.97, memory_gb=20.14, epoch_s=38.01),
    ),
    dict(
        name='STL-10: E2E',
        config='../small_images/vit-small-p16_finetune_1xb512-100e_stl10.py',
        published=dict(score=94.88, memory_gb=25.56, epoch_s=5.91),
    ),
    dict(
        name='STL-10: RepL',
        config='../small_images/vit-small-p16-repl_finetune_1xb512-100e_stl10.py',
        versus='STL-10: E2E',
        published=dict(score=95.11, memory_gb=20.14, epoch_s=4.66),
    ),
]
