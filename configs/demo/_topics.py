# Held-out perplexity on the reference pages that Python ships; runs on a laptop's CPU in minutes.
num_tokens = 3_000  # room for the vocabulary, which differs a little between versions of Python

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='PythonTopics', split='train', num_tokens=num_tokens, bptt=64, columns=16),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='PythonTopics', split='valid', num_tokens=num_tokens, bptt=64),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Perplexity')
test_evaluator = val_evaluator

val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
custom_hooks = [dict(type='repl_mm.CostHook')]
randomness = dict(seed=0)
