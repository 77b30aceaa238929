# Table VIII: detection. The small profile needs tools/make_digit_scenes.py coco data/digits/coco.
title = 'Table VIII (2026): COCO'
metric = 'coco/bbox_mAP'
seeds = 3
smaller = (
    'RetinaNet on a ResNet-34 of a quarter of the channels, sites by budget, scenes of handwritten digits in '
    'the place of COCO, 5 of 100 epochs'
)
rows = [
    dict(
        name='RetinaNet, ResNet-50: E2E',
        config='../detection/retinanet_r50_fpn_4xb2-100e_coco.py',
        small='../demo/retinanet_r34_fpn_digits.py',
        published=dict(score=30.42, memory_gb=6.85, epoch_s=3859.11),
    ),
    dict(
        name='RetinaNet, ResNet-50: RepL',
        config='../detection/retinanet_r50-repl_fpn_4xb2-100e_coco.py',
        small='../demo/retinanet_r34-repl_fpn_digits.py',
        versus='RetinaNet, ResNet-50: E2E',
        published=dict(score=30.64, memory_gb=5.82, epoch_s=3245.23),
    ),
    dict(
        name='RetinaNet, ResNet-101: E2E',
        config='../detection/retinanet_r101_fpn_4xb2-100e_coco.py',
        published=dict(score=32.36, memory_gb=8.19, epoch_s=5548.09),
    ),
    dict(
        name='RetinaNet, ResNet-101: RepL',
        config='../detection/retinanet_r101-repl_fpn_4xb2-100e_coco.py',
        versus='RetinaNet, ResNet-101: E2E',
        published=dict(score=32.76, memory_gb=6.65, epoch_s=4671.33),
    ),
]
