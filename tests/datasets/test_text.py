"""Contract: text becomes the tokens, the vocabulary and the batches of the usual language-model arrangement.

Oracles: a paragraph, a vocabulary and batches written by hand; the arrangement as it is published with torch's example
of a language model, in NumPy.
"""

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, default_collate

from repl_mm.datasets.text import (
    IGNORED,
    PythonTopics,
    WikiText2,
    basic_english,
    build_vocabulary,
    unigram_perplexity,
)

TRAIN = ' \n = The Cat = \n \n The cat sat , and the <unk> sat ; the cat " slept " . \n'
# the: 4, cat: 3, sat: 2, =: 2; all else once.
VOCABULARY = ('<unk>', '<eos>', 'the', 'cat', '=', 'sat')


def write(root, **splits):
    for split in ('train', 'valid', 'test'):
        (root / f'wiki.{split}.tokens').write_text(splits.get(split, TRAIN), encoding='utf-8')
    return str(root)


def data(root, split='train', **options):
    return WikiText2(data_root=str(root), split=split, **dict(num_tokens=100) | options)


def test_a_paragraph():
    text = 'It isn\'t "so": (Mr. <unk>;  42, yes!)<br />A B?\tÉté'
    assert basic_english(text) == [
        'it', 'isn', "'", 't', 'so', '(', 'mr', '.', '<unk>', '42', ',', 'yes', '!', ')', 'a', 'b', '?', 'été',
    ]  # fmt: skip
    assert basic_english(' \n') == []


def test_a_vocabulary():
    assert build_vocabulary([['b', 'a', '<eos>'], ['a', 'b', 'c', '<unk>', '<eos>'], ['b', '<eos>']]) == (
        '<unk>', '<eos>', 'b', 'a',
    )  # fmt: skip


def test_a_split_by_hand(tmp_path):
    """Empty lines are no sentences; each other line ends with <eos>; words that were seen once are unknown."""
    write(tmp_path, valid='The dog sat \n\n=\u2028= \n')  # that mark ends no line of the published files
    assert data(tmp_path).metainfo['vocabulary'] == VOCABULARY
    assert data(tmp_path).stream.tolist() == [4, 2, 3, 4, 1, 2, 3, 5, 0, 0, 2, 0, 5, 2, 3, 0, 0, 1]
    valid = data(tmp_path, 'valid')
    assert valid.stream.tolist() == [2, 0, 5, 1, 4, 4, 1]
    assert valid.metainfo['vocabulary'] == VOCABULARY


def test_batches_by_hand(tmp_path):
    """18 words in two columns of nine, three words at a time; the last sequence has two that are followed by a word."""
    write(tmp_path)
    samples = data(tmp_path, bptt=3, columns=2)
    loader = DataLoader(samples, batch_size=2, collate_fn=default_collate)
    batches = [(batch['inputs'].tolist(), batch['targets'].tolist()) for batch in loader]
    assert batches == [
        ([[4, 2, 3], [0, 2, 0]], [[2, 3, 4], [2, 0, 5]]),
        ([[4, 1, 2], [5, 2, 3]], [[1, 2, 3], [2, 3, 0]]),
        ([[3, 5, 0], [0, 0, 0]], [[5, 0, IGNORED], [0, 1, IGNORED]]),
    ]


def published(stream: np.ndarray, *, columns: int, bptt: int):
    """Batches (columns, t) of inputs and targets, as torch's example cuts them."""
    length = len(stream) // columns
    source = stream[: columns * length].reshape(columns, length).T
    for start in range(0, length - 1, bptt):
        size = min(bptt, length - 1 - start)
        yield source[start : start + size].T, source[start + 1 : start + 1 + size].T


@pytest.mark.parametrize(('columns', 'bptt', 'words'), [(1, 5, 21), (4, 7, 103), (3, 8, 75), (5, 128, 60), (2, 1, 5)])
def test_batches_are_the_published_ones(columns, bptt, words, tmp_path):
    write(
        tmp_path,
        train=' '.join(f'w{n % 13}' for n in range(words + 13)),
        test=' '.join(f'w{n % 7}' for n in range(words)),
    )
    samples = data(tmp_path, 'test', bptt=bptt, columns=columns)
    loader = DataLoader(samples, batch_size=columns, sampler=DefaultSampler(samples, shuffle=False))
    expected = list(published(samples.stream.numpy(), columns=columns, bptt=bptt))
    assert len(loader) == len(expected)
    for batch, (inputs, targets) in zip(loader, expected, strict=True):
        assert batch['inputs'].shape == batch['targets'].shape == (columns, bptt)
        size = inputs.shape[1]
        np.testing.assert_array_equal(batch['inputs'][:, :size], inputs)
        np.testing.assert_array_equal(batch['targets'][:, :size], targets)
        assert batch['targets'][:, size:].eq(IGNORED).all()


def test_every_word_of_a_split_but_the_first_is_predicted_once(tmp_path):
    write(tmp_path)
    samples = data(tmp_path, 'test', bptt=5)
    targets = torch.cat([samples[at]['targets'] for at in range(len(samples))])
    assert torch.equal(targets[targets != IGNORED], samples.stream[1:])


def test_the_pages_of_python():
    train, valid = (PythonTopics(split=split, num_tokens=3_000) for split in ('train', 'valid'))
    assert not set(train.lines('train')) & set(train.lines('valid'))
    assert 0.05 < len(valid.stream) / (len(train.stream) + len(valid.stream)) < 0.15
    assert valid.metainfo == train.metainfo
    assert valid.stream.eq(0).float().mean() < 0.15  # unknown words


def test_guessing_by_frequency(tmp_path):
    """By hand: each of the six words once more than it is among the 18."""
    write(tmp_path, valid='the the dog')
    train, valid = data(tmp_path), data(tmp_path, 'valid')
    shares = {0: 6 / 24, 1: 3 / 24, 2: 5 / 24}
    expected = (shares[2] * shares[2] * shares[0] * shares[1]) ** (-1 / 4)
    assert unigram_perplexity(train, valid) == pytest.approx(expected, rel=1e-6)


BAD = {
    'missing': (dict(), dict(split='test'), 'wiki.test.tokens is missing: get WikiText-2 from https://'),
    'encoding': (dict(valid='caf\xe9'.encode('latin-1')), dict(split='valid'), 'is no UTF-8 text, by its byte 3: '),
    'utf-16': (dict(train='the the'.encode('utf-16')), dict(), 'is no UTF-8 text, by its byte 0: '),
    'empty': (dict(train=b' \n \n'), dict(), 'the training split of WikiText-2 in .* is empty: '),
    'nothing twice': (dict(train=b'a b c'), dict(), 'is empty: no word is there twice'),
    'empty split': (dict(valid=b''), dict(split='valid'), 'the valid split of .* has 0 words, too few for 1 column'),
    'short': (dict(), dict(columns=10), 'has 18 words, too few for 10 column'),
    'words': (dict(), dict(num_tokens=5), 'has a vocabulary of 6 words, the model knows 5: set num_tokens to 6'),
    'split': (dict(), dict(split='val'), "has the splits train, valid, test, got 'val'"),
    'bptt': (dict(), dict(bptt=0), 'bptt and columns are at least 1, got bptt=0 and columns=1'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_read_is_one_sentence(case, tmp_path):
    files, options, message = BAD[case]
    write(tmp_path)
    if case == 'missing':
        (tmp_path / 'wiki.test.tokens').unlink()
    for split, content in files.items():
        (tmp_path / f'wiki.{split}.tokens').write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        data(tmp_path, **options)
    assert '\n' not in str(raised.value)
