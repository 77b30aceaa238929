# Table XVI: coefficients of a computing layer.
title = 'Table XVI (2026): coefficients, ViT-T/8, CIFAR-10'
metric = 'accuracy/top1'
seeds = 5
smaller = (
    'Fashion-MNIST in the place of the published sets, 10,000 of its 60,000 training images, 12 of 250 epochs '
    'at a batch of 64'
)
rows = [
    dict(
        name='E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=72.77, memory_gb=2.81, epoch_s=6.81),
    ),
    dict(
        name='RepL: two coefficients',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='E2E',
        published=dict(score=73.71, memory_gb=2.08, epoch_s=5.65),
    ),
    dict(
        name='RepL: one coefficient',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl.coefficients': 'one'},
        versus='E2E',
        published=dict(score=73.09, memory_gb=2.08, epoch_s=5.65),
    ),
]
