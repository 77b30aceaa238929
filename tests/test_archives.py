"""Contract: an archive of data is unpacked inside of its folder.

Oracle: a folder beside it, in which nothing may appear.
"""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from mmpretrain.datasets.utils import extract_archive

from repl_mm.engine.install import install

install()


def add(
    archive: tarfile.TarFile, name: str, *, kind: bytes = tarfile.REGTYPE, to: str = '', content: bytes = b''
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, to, len(content)
    archive.addfile(member, io.BytesIO(content))


def chain(archive: tarfile.TarFile) -> None:
    """Longer than a path may be, so that resolving it stops; the last link of it goes up again, out of the folder."""
    inner, steps, path = 'd' * 247, 'abcdefghijklmnop', ''
    for step in steps:
        add(archive, os.path.join(path, inner), kind=tarfile.DIRTYPE)
        add(archive, os.path.join(path, step), kind=tarfile.SYMTYPE, to=inner)
        path = os.path.join(path, inner)
    up = os.path.join('/'.join(steps), 'l' * 254)
    add(archive, up, kind=tarfile.SYMTYPE, to='../' * len(steps))
    add(archive, 'escape', kind=tarfile.SYMTYPE, to=f'{up}/../../outside')
    add(archive, 'hard', kind=tarfile.LNKTYPE, to='escape/victim')
    add(archive, 'hard', content=b'changed')
    add(archive, 'escape/new', content=b'new')


ARCHIVES = {
    'a chain of links': chain,
    'a symbolic link inside': lambda archive: add(archive, 'link', kind=tarfile.SYMTYPE, to='data'),
    'a hard link': lambda archive: (
        add(archive, 'data', content=b'1'),
        add(archive, 'link', kind=tarfile.LNKTYPE, to='data'),
    ),
    'a link out': lambda archive: add(archive, 'link', kind=tarfile.SYMTYPE, to='../outside'),
    'a name that goes up': lambda archive: add(archive, '../outside/new', content=b'new'),
    'a device': lambda archive: add(archive, 'device', kind=tarfile.CHRTYPE),
    'a pipe': lambda archive: add(archive, 'pipe', kind=tarfile.FIFOTYPE),
    'a link that is there': lambda archive: add(archive, 'there/new', content=b'new'),
}


@pytest.mark.parametrize('name', ARCHIVES)
@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'tar.xz'])
def test_nothing_leaves_the_folder(name, suffix, tmp_path):
    outside, folder = tmp_path / 'outside', tmp_path / 'data'
    outside.mkdir()
    folder.mkdir()
    (outside / 'victim').write_text('unchanged')
    (folder / 'there').symlink_to(outside)
    path = tmp_path / f'archive.{suffix}'
    with tarfile.open(path, 'w:' + suffix.rpartition('.')[2].replace('tar', '')) as archive:
        ARCHIVES[name](archive)
    with pytest.raises(tarfile.FilterError):
        extract_archive(str(path), str(folder))
    assert [file.name for file in outside.iterdir()] == ['victim']
    assert (outside / 'victim').read_text() == 'unchanged'
    assert not any(file.is_symlink() for file in folder.iterdir() if file.name != 'there')


def test_an_archive_of_data_is_unpacked(tmp_path):
    path = tmp_path / 'archive.tgz'
    with tarfile.open(path, 'w:gz') as archive:
        add(archive, 'images', kind=tarfile.DIRTYPE)
        add(archive, 'images/1.png', content=b'image')
        add(archive, './labels', content=b'label')
    extract_archive(str(path), str(tmp_path / 'data'))
    assert (tmp_path / 'data/images/1.png').read_bytes() == b'image'
    assert (tmp_path / 'data/labels').read_bytes() == b'label'


def test_a_zip_archive_stays_inside_and_makes_no_links(tmp_path):
    path, folder = tmp_path / 'archive.zip', tmp_path / 'data'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../outside', 'new')
        link = zipfile.ZipInfo('link')
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, '/etc')
        archive.writestr('link2/../../../outside', 'new')
    extract_archive(str(path), str(folder))
    assert sorted(file.name for file in tmp_path.iterdir()) == ['archive.zip', 'data']
    assert not any(Path(root, name).is_symlink() for root, _, names in os.walk(folder) for name in names)
