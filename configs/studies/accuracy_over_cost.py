# Ways to save a step's time and memory, by what they score: RepL's recipes, the same blocks dropped (a shallower
# network), stochastic depth, Skip-Attention. docs/accuracy.md draws them over their predicted costs.
title = 'Accuracy over cost, CIFAR-10'
metric = 'accuracy/top1'
seeds = 3
smaller = (
    'Fashion-MNIST in the place of CIFAR-10, 10,000 of its 60,000 training images, 12 of 250 epochs at a batch of 64'
)
e2e = dict(
    config='../small_images/resnet32_1xb1024-250e_cifar10.py',
    small='../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py',
)
resnet = dict(
    config='../small_images/resnet32-repl_1xb1024-250e_cifar10.py',
    small='../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py',
    versus='ResNet-32: E2E',
)
vit = dict(
    config='../small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py',
    small='../small_images/vit-tiny-p8-repl_1xb64-12e_fashion-mnist-10k.py',
    versus='ViT-T/8: E2E',
)
dropped = {'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')}
dropped_2 = {'model.backbone.repl': dict(_delete_=True, policy='interval', every=2, form='drop')}
lean = dict(_delete_=True, policy='budget', every=2, recompute=True, grad_fraction=0.25)
rows = [
    dict(name='ResNet-32: E2E', **e2e),
    dict(name='ResNet-32: RepL, K = 4', **resnet),
    dict(name='ResNet-32: dropped, K = 4', options=dropped, **resnet, note='a ResNet-26'),
    dict(name='ResNet-32: RepL, K = 2', options={'model.backbone.repl.every': 2}, **resnet),
    dict(name='ResNet-32: dropped, K = 2', options=dropped_2, **resnet, note='a ResNet-20'),
    dict(name='ResNet-32: RepL, half, lean', options={'model.backbone.repl': lean}, **resnet),
    dict(
        name='ResNet-32: stochastic depth',
        options={'model.backbone.stochastic_depth': 0.2},
        versus='ResNet-32: E2E',
        **e2e,
    ),
    dict(name='ResNet-32: RepL and stochastic depth', options={'model.backbone.stochastic_depth': 0.2}, **resnet),
    dict(
        name='ViT-T/8: E2E',
        config='../small_images/vit-tiny-p8_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8_1xb64-12e_fashion-mnist-10k.py',
    ),
    dict(name='ViT-T/8: RepL, K = 4', **vit),
    dict(name='ViT-T/8: dropped, K = 4', options=dropped, **vit, note='a ViT of 10 blocks'),
    dict(name='ViT-T/8: RepL, K = 2', options={'model.backbone.repl.every': 2}, **vit),
    dict(name='ViT-T/8: dropped, K = 2', options=dropped_2, **vit, note='a ViT of 7 blocks'),
    dict(
        name='ViT-T/8: Skip-Attention',
        config='../small_images/vit-tiny-p8-skip-attention_1xb512-250e_cifar10.py',
        small='../small_images/vit-tiny-p8-skip-attention_1xb64-12e_fashion-mnist-10k.py',
        versus='ViT-T/8: E2E',
    ),
]
del e2e, resnet, vit, dropped, dropped_2, lean  # a study holds what it says, nothing else
