# Table IV: the same blocks dropped, and replaced, on ImageNet.
title = 'Table IV (2026): dropped or replaced, ImageNet'
metric = 'accuracy/top1'
seeds = 3
smaller = (
    'ResNet-32 and ViT-T/8 for ResNet-34 and ViT-T/16; Fashion-MNIST in the place of the published sets, '
    '10,000 of its 60,000 training images, 12 of 250 epochs at a batch of 64'
)
rows = [
    dict(
        name='ResNet-34: E2E',
        config='../classification/resnet34_4xb128-90e_in1k.py',
        small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=74.82, memory_gb=9.21, epoch_s=463.23),
    ),
    dict(
        name='ResNet-34: dropped',
        config='../classification/resnet34-repl_4xb128-90e_in1k.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')},
        versus='ResNet-34: E2E',
        published=dict(score=72.99, memory_gb=7.75, epoch_s=392.21),
        note='the sites of the rule, as in the row of RepL; the paper says a quarter of the layers',
    ),
    dict(
        name='ResNet-34: RepL',
        config='../classification/resnet34-repl_4xb128-90e_in1k.py',
        small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ResNet-34: E2E',
        published=dict(score=75.44, memory_gb=8.06, epoch_s=410.53),
    ),
    dict(
        name='ViT-T/16: E2E',
        config='../classification/vit-tiny-p16_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
        published=dict(score=60.23, memory_gb=12.17, epoch_s=357.66),
    ),
    dict(
        name='ViT-T/16: dropped',
        config='../classification/vit-tiny-p16-repl_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        options={'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')},
        versus='ViT-T/16: E2E',
        published=dict(score=58.22, memory_gb=9.49, epoch_s=287.55),
        note='the sites of the rule, as in the row of RepL; the paper says a quarter of the layers',
    ),
    dict(
        name='ViT-T/16: RepL',
        config='../classification/vit-tiny-p16-repl_4xb256-90e_in1k.py',
        small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/16: E2E',
        published=dict(score=60.93, memory_gb=9.59, epoch_s=290.15),
    ),
]
