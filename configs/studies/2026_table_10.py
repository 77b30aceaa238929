# Table X: language.
title = 'Table X (2026): WikiText-2'
metric = 'perplexity'
seeds = 3
smaller = (
    'the reference pages that Python ships in the place of WikiText-2, a width of 128 in the place of 512, '
    'sequences of 64 words, 6 of 20 epochs'
)
rows = [
    dict(
        name='E2E',
        config='../language/transformer-lm-12l_1xb64-20e_wikitext2.py',
        small='../demo/transformer-lm_topics.py',
        published=dict(score=195.42, memory_gb=10.92, epoch_s=20.8),
    ),
    dict(
        name='RepL',
        config='../language/transformer-lm-12l-repl_1xb64-20e_wikitext2.py',
        small='../demo/transformer-lm-repl_topics.py',
        versus='E2E',
        published=dict(score=193.31, memory_gb=9.61, epoch_s=17.7),
    ),
]
