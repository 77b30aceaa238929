# Table IX: beside stochastic depth and activation checkpointing, and with them.
title = 'Table IX (2026): stochastic depth and checkpointing'
metric = 'accuracy/top1'
seeds = 3
smaller = (
    'Fashion-MNIST in the place of the published sets, 10,000 of its 60,000 training images, 12 of 250 epochs '
    'at a batch of 64; without ResNet-101'
)
rows = [
    dict(
        name='ResNet-32, CIFAR-10: E2E',
        config='../small_images/resnet32_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=93.17, memory_gb=3.38, epoch_s=10.44),
    ),
    dict(
        name='ResNet-32, CIFAR-10: RepL',
        config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-32, CIFAR-10: E2E',
        published=dict(score=93.43, memory_gb=2.69, epoch_s=8.2),
    ),
    dict(
        name='ResNet-32, CIFAR-10: stochastic depth',
        config='../small_images/resnet32_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.stochastic_depth': 0.2},
        versus='ResNet-32, CIFAR-10: E2E',
        published=dict(score=93.04, memory_gb=3.31, epoch_s=10.05),
        note='the paper gives no rate: 0.2 at the last block',
    ),
    dict(
        name='ResNet-32, CIFAR-10: RepL and stochastic depth',
        config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.stochastic_depth': 0.2},
        versus='ResNet-32, CIFAR-10: E2E',
        published=dict(score=93.17, memory_gb=2.67, epoch_s=9.36),
    ),
    dict(
        name='ResNet-32, CIFAR-10: checkpointing',
        config='../small_images/resnet32_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        options=dict(custom_hooks=[dict(type='repl_mm.CostHook'), dict(type='repl_mm.ActivationCheckpointingHook')]),
        versus='ResNet-32, CIFAR-10: E2E',
        published=dict(score=93.13, memory_gb=1.77, epoch_s=16.44),
    ),
    dict(
        name='ResNet-32, CIFAR-10: RepL and checkpointing',
        config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options=dict(custom_hooks=[dict(type='repl_mm.CostHook'), dict(type='repl_mm.ActivationCheckpointingHook')]),
        versus='ResNet-32, CIFAR-10: E2E',
        published=dict(score=93.24, memory_gb=1.64, epoch_s=14.54),
    ),
    dict(
        name='ResNet-101, ImageNet: E2E',
        config='../classification/resnet101_4xb128-90e_in1k.py',
        published=dict(score=77.55, memory_gb=20.95, epoch_s=720),
    ),
    dict(
        name='ResNet-101, ImageNet: RepL',
        config='../classification/resnet101-repl_4xb128-90e_in1k.py',
        versus='ResNet-101, ImageNet: E2E',
        published=dict(score=78.13, memory_gb=18.01, epoch_s=616),
        note='18.05 GB in Table II',
    ),
    dict(
        name='ResNet-101, ImageNet: stochastic depth',
        config='../classification/resnet101_4xb128-90e_in1k.py',
        options={'model.backbone.type': 'repl_mm.ReplResNet', 'model.backbone.stochastic_depth': 0.2},
        versus='ResNet-101, ImageNet: E2E',
        published=dict(score=77.63, memory_gb=19.39, epoch_s=652),
        note='the paper gives no rate: 0.2 at the last block',
    ),
    dict(
        name='ResNet-101, ImageNet: RepL and stochastic depth',
        config='../classification/resnet101-repl_4xb128-90e_in1k.py',
        options={'model.backbone.stochastic_depth': 0.2},
        versus='ResNet-101, ImageNet: E2E',
        published=dict(score=78.11, memory_gb=17.12, epoch_s=551),
    ),
    dict(
        name='ResNet-101, ImageNet: checkpointing',
        config='../classification/resnet101_4xb128-90e_in1k.py',
        options={
            'model.backbone.type': 'repl_mm.ReplResNet',
            'custom_hooks': [dict(type='repl_mm.CostHook'), dict(type='repl_mm.ActivationCheckpointingHook')],
        },
        versus='ResNet-101, ImageNet: E2E',
        published=dict(score=78.25, memory_gb=14.47, epoch_s=1012),
    ),
    dict(
        name='ResNet-101, ImageNet: RepL and checkpointing',
        config='../classification/resnet101-repl_4xb128-90e_in1k.py',
        options=dict(custom_hooks=[dict(type='repl_mm.CostHook'), dict(type='repl_mm.ActivationCheckpointingHook')]),
        versus='ResNet-101, ImageNet: E2E',
        published=dict(score=78.29, memory_gb=12.93, epoch_s=819),
    ),
]
