# WikiText-2 by basic-English tokens, in sequences of 128; the words that are in the training split twice or more.
num_tokens = 28_783  # room for that vocabulary: a data set with more words is refused
data = dict(type='WikiText2', data_root='data/wikitext-2', num_tokens=num_tokens, bptt=128)
loading = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)

train_dataloader = dict(dataset=dict(split='train', columns=64, **data), **loading)
val_dataloader = dict(dataset=dict(split='valid', **data), **loading)
test_dataloader = dict(dataset=dict(split='test', **data), **loading)
val_evaluator = dict(type='Perplexity')
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
