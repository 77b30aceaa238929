_base_ = './_topics.py'
default_scope = 'repl_mm'

model = dict(
    type='TransformerLM',
    backbone=dict(
        type='ReplTransformer',
        num_tokens={{_base_.num_tokens}},
        embed_dims=128,
        depth=12,
        num_heads=4,
        feedforward_channels=512,
        context=64,
        dropout=0.1,
    ),
)

epochs = 6
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(
    type='OneCycleLR', eta_max=1e-3, by_epoch=True, total_steps=epochs, convert_to_iter_based=True, pct_start=0.2
)
