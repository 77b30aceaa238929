# Table XV: fixed sites, and sites that are chosen anew at every epoch.
title = 'Table XV (2026): fixed or adaptive sites, CIFAR-10'
metric = 'accuracy/top1'
seeds = 5
smaller = (
    'Fashion-MNIST in the place of the published sets, 10,000 of its 60,000 training images, 12 of 250 epochs '
    'at a batch of 64'
)
rows = [
    dict(
        name='ResNet-32: E2E',
        config='../small_images/resnet32_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=93.17, memory_gb=3.38, epoch_s=10.44),
    ),
    dict(
        name='ResNet-32: fixed',
        config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-32: E2E',
        published=dict(score=93.43, memory_gb=2.69, epoch_s=8.2),
    ),
    dict(
        name='ResNet-32: adaptive',
        config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='adaptive', start='interval', every=4)},
        versus='ResNet-32: E2E',
        published=dict(score=92.54, memory_gb=3.17, epoch_s=9.12),
    ),
    dict(
        name='ViT-T/8: E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=72.77, memory_gb=2.81, epoch_s=6.81),
    ),
    dict(
        name='ViT-T/8: fixed',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/8: E2E',
        published=dict(score=73.71, memory_gb=2.08, epoch_s=5.65),
    ),
    dict(
        name='ViT-T/8: adaptive',
        config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={
            'model.backbone.repl': dict(_delete_=True, policy='adaptive', start='interval', every=4, mlp_fusion=True)
        },
        versus='ViT-T/8: E2E',
        published=dict(score=71.97, memory_gb=2.35, epoch_s=6.17),
    ),
]
