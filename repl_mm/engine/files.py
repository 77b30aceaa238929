"""Files that are there whole or not at all, whatever happens while they are written."""

import errno
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

PART = '.part'


def remove_parts(folder: Path) -> None:
    """Remove what killed processes have left of files in a folder; nobody may be writing there."""
    for path in folder.glob(f'.*{PART}'):
        path.unlink(missing_ok=True)


def require_regular(path: str | Path) -> None:
    """Refuse a pipe, a socket or a device: reading one waits for ever, or never ends.

    Raises:
        ValueError: It is there, and no file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(
            f'{path} is a {"folder" if path.is_dir() else "pipe, socket or device"}, not a file: give a file'
        )


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside, down to the disk, then move it into place.

    Raises:
        OSError: The disk is full, or the place cannot be written to; a file that was there before is as it was.
        ValueError: A folder, pipe or device is there.
    """
    require_regular(path)  # moving a file there would replace /dev/null for the whole machine
    beside = path.with_name(f'.{path.name}.{os.getpid()}{PART}')  # several processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        reason = error.strerror.lower()
        raise type(error)(f'cannot write {path}: {reason}. What was there before is as it was') from error


def _sync_folder(path: Path) -> None:
    """A name is on the disk when its folder is."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; the kernel lets go of it however this process ends.

    A lock of this kind (``fcntl.lockf``) is the process' alone: data-loader workers, which outlive it by some seconds
    when it is killed, do not hold it, and it reaches over NFS.

    Raises:
        ValueError: Another process has it, which is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'a+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = file.readline().strip() or 'another process'
                raise ValueError(
                    f'{folder} is in use by {holder}: wait until it ends, or give another --work-dir'
                ) from None
            print(
                f'{folder} cannot be locked ({error.strerror}): see to it that no other run uses it',
                file=sys.stderr,
            )
        else:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n')
            file.flush()
        yield


class AtomicBackend(LocalBackend):
    """mmengine's access to local files, through which it saves checkpoints and reads data.

    Writes by :func:`write_atomic`, and reads nothing but files.
    """

    def get(self, filepath: str | Path) -> bytes:
        """Read bytes."""
        require_regular(filepath)
        return super().get(filepath)

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """Read text."""
        require_regular(filepath)
        return super().get_text(filepath, encoding)

    def get_local_path(self, filepath: str | Path) -> AbstractContextManager[str | Path]:
        """The path itself, for who reads a local file."""
        require_regular(filepath)
        return super().get_local_path(filepath)

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        write_atomic(Path(filepath), obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        write_atomic(Path(filepath), obj.encode(encoding))


def use_atomic_files() -> None:
    """Let mmengine use :class:`AtomicBackend` for every path without a prefix such as ``s3://``."""
    register_backend('local', AtomicBackend, force=True, prefixes='')
