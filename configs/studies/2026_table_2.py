# Table II: ImageNet.
title = 'Table II (2026): ImageNet'
metric = 'accuracy/top1'
seeds = 3
smaller = (
    'ResNet-32 and ViT-T/8 for ResNet-34 and ViT-T/16, without the others; Fashion-MNIST in the place of the '
    'published sets, 10,000 of its 60,000 training images, 12 of 250 epochs at a batch of 64'
)
rows = [
    dict(
        name='ResNet-34: E2E',
        config='../classification/resnet34_4xb128-90e_in1k.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=74.82, memory_gb=9.21, epoch_s=463.23),
    ),
    dict(
        name='ResNet-34: RepL',
        config='../classification/resnet34-repl_4xb128-90e_in1k.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-34: E2E',
        published=dict(score=75.44, memory_gb=8.06, epoch_s=410.53),
        note='the text says a quarter of the layers, Eq. 2 gives 1 block of 16',
    ),
    dict(
        name='ResNet-101: E2E',
        config='../classification/resnet101_4xb128-90e_in1k.py',
        published=dict(score=77.55, memory_gb=20.95, epoch_s=720.11),
    ),
    dict(
        name='ResNet-101: RepL',
        config='../classification/resnet101-repl_4xb128-90e_in1k.py',
        versus='ResNet-101: E2E',
        published=dict(score=78.13, memory_gb=18.05, epoch_s=616.23),
        note='Eq. 2 gives 5 blocks of 33; Table IX prints 18.01 GB',
    ),
    dict(
        name='ResNet-152: E2E',
        config='../classification/resnet152_4xb128-90e_in1k.py',
        published=dict(score=78.16, memory_gb=27.58, epoch_s=738.74),
    ),
    dict(
        name='ResNet-152: RepL',
        config='../classification/resnet152-repl_4xb128-90e_in1k.py',
        versus='ResNet-152: E2E',
        published=dict(score=78.31, memory_gb=24.19, epoch_s=633.89),
    ),
    dict(
        name='ViT-T/16: E2E',
        config='../classification/vit-tiny-p16_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=60.23, memory_gb=12.17, epoch_s=357.66),
    ),
    dict(
        name='ViT-T/16: Skip-Attention',
        config='../classification/vit-tiny-p16-skip-attention_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8-skip-attention_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/16: E2E',
        published=dict(score=60.51, memory_gb=11.52, epoch_s=381.44),
    ),
    dict(
        name='ViT-T/16: RepL',
        config='../classification/vit-tiny-p16-repl_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/16: E2E',
        published=dict(score=60.93, memory_gb=9.59, epoch_s=290.15),
    ),
    dict(
        name='ViT-S/16: E2E',
        config='../classification/vit-small-p16_4xb256-90e_in1k.py',
        published=dict(score=64.35, memory_gb=21.05, epoch_s=798.61),
    ),
    dict(
        name='ViT-S/16: Skip-Attention',
        config='../classification/vit-small-p16-skip-attention_4xb256-90e_in1k.py',
        versus='ViT-S/16: E2E',
        published=dict(score=61.65, memory_gb=20.67, epoch_s=755.14),
    ),
    dict(
        name='ViT-S/16: RepL',
        config='../classification/vit-small-p16-repl_4xb256-90e_in1k.py',
        versus='ViT-S/16: E2E',
        published=dict(score=65.09, memory_gb=16.22, epoch_s=617.1),
        note='Table XVII prints 63.76 and 65.34 for the same networks',
    ),
    dict(
        name='ViT-B/16: E2E',
        config='../classification/vit-base-p16_4xb256-90e_in1k.py',
        published=dict(score=59.46, memory_gb=41.97, epoch_s=2566.7),
    ),
    dict(
        name='ViT-B/16: Skip-Attention',
        config='../classification/vit-base-p16-skip-attention_4xb256-90e_in1k.py',
        versus='ViT-B/16: E2E',
        published=dict(score=58.94, memory_gb=38.49, epoch_s=2393.81),
    ),
    dict(
        name='ViT-B/16: RepL',
        config='../classification/vit-base-p16-repl_4xb256-90e_in1k.py',
        versus='ViT-B/16: E2E',
        published=dict(score=60.18, memory_gb=29.94, epoch_s=1924.35),
    ),
]
