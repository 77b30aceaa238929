"""Text for language models: words as numbers, in the sequences of truncated back-propagation through time (BPTT)."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_mm.datasets.integrity import missing_part
from repl_mm.registry import DATASETS

UNKNOWN, END = '<unk>', '<eos>'
IGNORED = -1  # the target of a place that is no word, as its sequence has ended
LEAST_COUNT = 2

_MARKS = str.maketrans({**{mark: f' {mark} ' for mark in "'.,()!?"}, '"': '', ';': ' ', ':': ' '})


def basic_english(text: str) -> list[str]:
    """The tokens of a text by the rules of torchtext's tokenizer ``basic_english``.

    Lower case; apostrophes, full stops, commas, parentheses, exclamation and question marks are tokens of their own;
    double quotes are left out; semicolons, colons and ``<br />`` are spaces; the rest is split at white space.
    """
    return text.lower().translate(_MARKS).replace('<br />', ' ').split()


def sentences_of(lines: Iterable[str]) -> list[list[str]]:
    """The tokens of each line that has some, with ``<eos>`` behind them."""
    return [[*tokens, END] for line in lines if (tokens := basic_english(line))]


def build_vocabulary(sentences: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """``<unk>`` and ``<eos>``, then all words that are there twice or more, the frequent ones first."""
    counts = Counter(chain.from_iterable(sentences))
    words = [word for word, count in counts.items() if count >= LEAST_COUNT and word not in (UNKNOWN, END)]
    return (UNKNOWN, END, *sorted(words, key=lambda word: (-counts[word], word)))


class TextDataset(Dataset):
    """A split of a corpus as one stream of words, cut into columns and each column into sequences.

    Sample k is sequence k // columns of column k % columns: a ``DefaultSampler(shuffle=False)`` and a batch size of
    ``columns`` over all processes give the usual batches of language modelling, where a sequence goes on in the next
    batch at the same place. A sample is a dictionary of ``inputs`` and ``targets``, both (bptt,) int64: the targets are
    the words that follow. Beyond the end of a column they are -1.

    Args:
        split: One of ``splits``.
        num_tokens: How many words the model knows; the vocabulary, which is that of the training split, has at most
            as many.
        bptt: Words of a sequence.
        columns: Parts of the stream that are read side by side. What is left over when it is cut into that many equal
            parts, fewer than ``columns`` words, is left out.

    Attributes:
        stream: The split's words by their numbers, (N,) int64.
        metainfo: The ``vocabulary``, words in the order of their numbers.

    Raises:
        ValueError: Another split, or a corpus that is missing, no UTF-8, empty, too short, or of too many words.
    """

    splits: ClassVar[Sequence[str]]

    def __init__(self, *, split: str, num_tokens: int, bptt: int = 128, columns: int = 1) -> None:
        if split not in self.splits:
            raise ValueError(f'{type(self).__name__} has the splits {", ".join(self.splits)}, got {split!r}')
        if min(bptt, columns) < 1:
            raise ValueError(f'bptt and columns are at least 1, got bptt={bptt} and columns={columns}')
        self.split, self.bptt, self.columns = split, bptt, columns
        vocabulary = build_vocabulary(sentences_of(self.lines('train')))
        if len(vocabulary) == 2:
            raise ValueError(f'the training split of {self} is empty: no word is there twice or more')
        if len(vocabulary) > num_tokens:
            raise ValueError(
                f'{self} has a vocabulary of {len(vocabulary):,} words, the model knows {num_tokens:,}: set num_tokens '
                f'to {len(vocabulary)} in the model and its data sets'
            )
        self.metainfo = {'vocabulary': vocabulary}
        number = {word: at for at, word in enumerate(vocabulary)}
        words = chain.from_iterable(sentences_of(self.lines(split)))
        self.stream = torch.tensor([number.get(word, 0) for word in words], dtype=torch.int64)
        self._length = len(self.stream) // columns  # of a column
        if self._length < 2:
            raise ValueError(
                f'the {split} split of {self} has {len(self.stream)} words, too few for {columns} column(s) of two '
                'words or more'
            )

    def lines(self, split: str) -> Sequence[str]:
        """The sentences of a split as they stand in the corpus."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.columns * math.ceil((self._length - 1) / self.bptt)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sequence, column = divmod(range(len(self))[index], self.columns)
        start = column * self._length + sequence * self.bptt
        words = self.stream[start : min(start + self.bptt + 1, (column + 1) * self._length)]
        inputs, targets = torch.zeros(self.bptt, dtype=torch.int64), torch.full((self.bptt,), IGNORED)
        inputs[: len(words) - 1], targets[: len(words) - 1] = words[:-1], words[1:]
        return dict(inputs=inputs, targets=targets)


@DATASETS.register_module()
class WikiText2(TextDataset):
    """WikiText-2 (Merity et al. 2016) in the files ``wiki.train.tokens``, ``wiki.valid.tokens``, ``wiki.test.tokens``.

    A line, that is a paragraph or a heading, is a sentence.

    Args:
        data_root: The folder that ``tools/prepare_data.py wikitext2`` looks through.
        **kwargs: See :class:`TextDataset`.
    """

    splits = ('train', 'valid', 'test')

    def __init__(self, *, data_root: str, **kwargs) -> None:
        self.root = Path(data_root)
        super().__init__(**kwargs)

    def __str__(self) -> str:
        return f'WikiText-2 in {self.root}'

    def lines(self, split: str) -> Sequence[str]:
        path = self.root / f'wiki.{split}.tokens'
        if not path.is_file():
            raise ValueError(missing_part('wikitext2', path).message)
        try:
            return path.read_text(encoding='utf-8').split('\n')  # words may hold other marks of a line's end
        except UnicodeDecodeError as error:
            raise ValueError(
                f'{path} is no UTF-8 text, by its byte {error.start}: get the file again, or convert it'
            ) from None


@DATASETS.register_module()
class PythonTopics(TextDataset):
    """The reference pages that every Python ships for ``help()``, for runs that need no download.

    A paragraph is a sentence; those that stand on several pages are taken once. Of the paragraphs, every tenth run of
    20 is held out.
    """

    splits = ('train', 'valid')

    def __str__(self) -> str:
        return 'pydoc_data.topics'

    def lines(self, split: str) -> Sequence[str]:
        return _python_topics()[split]


@cache
def _python_topics() -> dict[str, list[str]]:
    from pydoc_data.topics import topics

    pages = (topics[name].split('\n\n') for name in sorted(topics))
    paragraphs = dict.fromkeys(' '.join(paragraph.split()) for page in pages for paragraph in page)
    found: dict[str, list[str]] = {'train': [], 'valid': []}
    for at, paragraph in enumerate(paragraphs):
        found['valid' if at // 20 % 10 == 9 else 'train'].append(paragraph)
    return found


def unigram_perplexity(train: TextDataset, test: TextDataset) -> float:
    """Perplexity on ``test`` of guessing each word by its share of ``train``, whatever stands before it.

    Every word of the vocabulary counts once more than it is there (Laplace), as one may be in ``test`` alone.
    """
    counts = torch.bincount(train.stream, minlength=len(train.metainfo['vocabulary'])).double() + 1
    return (counts / counts.sum()).log()[test.stream].mean().neg().exp().item()
