# Table VI: which of the neighbours' weights a computing layer takes.
title = 'Table VI (2026): sources of a computing layer, ViT-T/8, CIFAR-10'
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
        name='RepL: attention and MLP',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='E2E',
        published=dict(score=73.71, memory_gb=2.08, epoch_s=5.65),
    ),
    dict(
        name='RepL: attention',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, sources='attention')},
        versus='E2E',
        published=dict(score=72.39, memory_gb=2.05, epoch_s=5.59),
    ),
    dict(
        name='RepL: MLP',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, sources='mlp')},
        versus='E2E',
        published=dict(score=72.14, memory_gb=2.07, epoch_s=5.53),
    ),
    dict(
        name="RepL: no neighbour's weights",
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, sources='none')},
        versus='E2E',
        published=dict(score=69.3, memory_gb=2.02, epoch_s=5.2),
        note='published as cheaper than dropping the blocks altogether (2.04 GB, 5.44 s)',
    ),
]
