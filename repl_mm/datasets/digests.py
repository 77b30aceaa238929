"""Digests of published files, by their paths below the root of their data set.

torchvision knows some of them. It is imported when it is needed, as it takes seconds.
"""

import hashlib
from functools import cache
from pathlib import Path

_ALGORITHMS = {32: 'md5', 40: 'sha1'}  # by their number of hexadecimal digits


def has_digest(path: Path, digest: str) -> bool:
    """Whether the content of a file is the published one."""
    found = hashlib.new(_ALGORITHMS[len(digest)])
    with path.open('rb') as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest() == digest


@cache
def cifar10_digests() -> dict[str, str]:
    """CIFAR-10, the version for Python."""
    from torchvision.datasets import CIFAR10

    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta['filename'], CIFAR10.meta['md5'])]
    return {f'{CIFAR10.base_folder}/{name}': digest for name, digest in files}


@cache
def svhn_digests() -> dict[str, str]:
    """SVHN, without the extra images."""
    from torchvision.datasets import SVHN

    return {name: digest for _, name, digest in (SVHN.split_list[split] for split in ('train', 'test'))}


@cache
def stl10_digests() -> dict[str, str]:
    """STL-10."""
    from torchvision.datasets import STL10

    return {f'{STL10.base_folder}/{name}': digest for name, digest in (*STL10.train_list, *STL10.test_list)}


@cache
def wikitext2_digests() -> dict[str, str]:
    """WikiText-2, the version with words; from the data sets of GluonNLP."""
    return {
        'wiki.train.tokens': '863f29c46ef9d167fff4940ec821195882fe29d1',
        'wiki.valid.tokens': '0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422',
        'wiki.test.tokens': 'c7b8ce0aa086fb34dab808c5c49224211eb2b172',
    }
