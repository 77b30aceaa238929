# Table III: the same blocks dropped, and replaced.
title = 'Table III (2026): dropped or replaced, CIFAR-10'
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
        published=dict(score=93.49, memory_gb=9.31, epoch_s=26.19),
    ),
    dict(
        name='ResNet-110: dropped',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')},
        versus='ResNet-110: E2E',
        published=dict(score=92.62, memory_gb=7.07, epoch_s=19.54),
        note='the sites of the rule, as in the row of RepL; the paper says a quarter of the layers',
    ),
    dict(
        name='ResNet-110: RepL',
        config='../small_images/resnet110-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-110: E2E',
        published=dict(score=94.01, memory_gb=7.62, epoch_s=20.93),
    ),
    dict(
        name='ViT-T/8: E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=72.77, memory_gb=2.81, epoch_s=6.81),
    ),
    dict(
        name='ViT-T/8: dropped',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')},
        versus='ViT-T/8: E2E',
        published=dict(score=71.13, memory_gb=2.04, epoch_s=5.44),
        note='the sites of the rule, as in the row of RepL; the paper says a quarter of the layers',
    ),
    dict(
        name='ViT-T/8: RepL',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/8: E2E',
        published=dict(score=73.71, memory_gb=2.08, epoch_s=5.65),
    ),
]
