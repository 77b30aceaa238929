# What could make RepL beat the network without its blocks: one factor at a time. Exploratory.
title = 'RepL against the shallower network, one factor at a time'
metric = 'accuracy/top1'
seeds = 3
smaller = 'ResNet-32 on 10,000 of the 60,000 training images of Fashion-MNIST, at a batch of 64, in either profile'
e2e = '../small_images/resnet32_1xb64-12e_fashion-mnist-10k.py'
repl = '../small_images/resnet32-repl_1xb64-12e_fashion-mnist-10k.py'
repl_longer = '../small_images/resnet32-repl_1xb64-36e_fashion-mnist-10k.py'
drop = {'model.backbone.repl': dict(_delete_=True, policy='interval', every=4, form='drop')}
zero = {'model.backbone.zero_init_residual': True}
no_decay = {
    'optim_wrapper.paramwise_cfg': dict(custom_keys={'.alpha': dict(decay_mult=0), '.beta': dict(decay_mult=0)})
}
rows = [
    dict(name='E2E', config=e2e, small=e2e),
    dict(name='dropped', config=repl, small=repl, options=drop, versus='E2E'),
    dict(name='RepL', config=repl, small=repl, versus='E2E'),
    dict(name='no weight decay on the coefficients', config=repl, small=repl, options=no_decay, versus='E2E'),
    dict(
        name='gradients into the neighbours',
        config=repl,
        small=repl,
        options={'model.backbone.repl.stop_gradient': False},
        versus='E2E',
    ),
    dict(
        name='blend',
        config=e2e,
        small=e2e,
        options={'model.backbone.repl': dict(policy='interval', every=4, form='blend')},
        versus='E2E',
    ),
    dict(
        name='three times the training: dropped',
        config=repl_longer,
        small=repl_longer,
        options=drop,
        versus='E2E',
    ),
    dict(name='three times the training: RepL', config=repl_longer, small=repl_longer, versus='E2E'),
    dict(name='zero_init_residual: dropped', config=repl, small=repl, options=drop | zero, versus='E2E'),
    dict(name='zero_init_residual: RepL', config=repl, small=repl, options=zero, versus='E2E'),
]
del e2e, repl, repl_longer, drop, zero, no_decay  # a study holds what it says, nothing else
