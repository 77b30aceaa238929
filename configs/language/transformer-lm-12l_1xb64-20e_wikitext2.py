# The paper's recipe (Table X): one GPU, batch 64, AdamW 3e-4, weight decay 0.01, gradients clipped at 1, float16,
# 20 epochs. Dropout, the activation and a constant learning rate are not in the paper.
_base_ = './_wikitext2.py'
default_scope = 'repl_mm'
model = dict(
    type='TransformerLM',
    backbone=dict(
        type='ReplTransformer',
        num_tokens={{_base_.num_tokens}},
        embed_dims=512,
        depth=12,
        num_heads=8,
        feedforward_channels=2048,
        context=128,
        dropout=0.1,
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
)
custom_hooks = [dict(type='repl_mm.CostHook')]
