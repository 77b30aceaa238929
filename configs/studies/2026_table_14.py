# Table XIV: segmentation. The small profile needs tools/make_digit_scenes.py cityscapes data/digits/cityscapes.
title = 'Table XIV (2026): CityScapes'
metric = 'mIoU'
seeds = 3
smaller = (
    'DeepLabV3+ on a ResNet-34 of a quarter of the channels, sites by budget, scenes of handwritten digits in '
    'the place of CityScapes, 1,080 of 30,000 iterations, from scratch'
)
rows = [
    dict(
        name='DeepLabV3, ResNet-50: E2E',
        config='../segmentation/deeplabv3_r50-d8_1xb16-30k_cityscapes-768x768.py',
        published=dict(score=73.34, memory_gb=23.9, epoch_s=80),
    ),
    dict(
        name='DeepLabV3, ResNet-50: RepL',
        config='../segmentation/deeplabv3_r50-d8-repl_1xb16-30k_cityscapes-768x768.py',
        versus='DeepLabV3, ResNet-50: E2E',
        published=dict(score=73.81, memory_gb=20.28, epoch_s=68),
    ),
    dict(
        name='DeepLabV3+, ResNet-50: E2E',
        config='../segmentation/deeplabv3plus_r50-d8_1xb16-30k_cityscapes-768x768.py',
        small='../demo/deeplabv3plus_r34-d8_digits.py',
        published=dict(score=74.61, memory_gb=26.81, epoch_s=82),
    ),
    dict(
        name='DeepLabV3+, ResNet-50: RepL',
        config='../segmentation/deeplabv3plus_r50-d8-repl_1xb16-30k_cityscapes-768x768.py',
        small='../demo/deeplabv3plus_r34-d8-repl_digits.py',
        versus='DeepLabV3+, ResNet-50: E2E',
        published=dict(score=75.25, memory_gb=22.67, epoch_s=69),
    ),
    dict(
        name='DeepLabV3, ResNet-101: E2E',
        config='../segmentation/deeplabv3_r101-d8_1xb16-30k_cityscapes-768x768.py',
        published=dict(score=74.41, memory_gb=30.91, epoch_s=95),
    ),
    dict(
        name='DeepLabV3, ResNet-101: RepL',
        config='../segmentation/deeplabv3_r101-d8-repl_1xb16-30k_cityscapes-768x768.py',
        versus='DeepLabV3, ResNet-101: E2E',
        published=dict(score=74.55, memory_gb=25.9, epoch_s=82),
    ),
    dict(
        name='DeepLabV3+, ResNet-101: E2E',
        config='../segmentation/deeplabv3plus_r101-d8_1xb16-30k_cityscapes-768x768.py',
        published=dict(score=75.53, memory_gb=34.42, epoch_s=101),
    ),
    dict(
        name='DeepLabV3+, ResNet-101: RepL',
        config='../segmentation/deeplabv3plus_r101-d8-repl_1xb16-30k_cityscapes-768x768.py',
        versus='DeepLabV3+, ResNet-101: E2E',
        published=dict(score=76.31, memory_gb=28.92, epoch_s=86),
    ),
]
