"""Files that are there whole or not at all."""

import errno
import functools
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}
"""What a file system says that does not know an operation: Lustre of locks, CIFS of folders that are flushed."""


@contextmanager
def written(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error.

    Args:
        path: the file to write or replace; its folder is made.
        durable: see to it that the content is on the disk first, so that not even a power cut leaves a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**18)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))  # nothing that others put there
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(path: Path) -> Path:
    """Make `path`, or where that exists `path_1`, `path_2`, ...; the one that was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"_{i}" for i in range(1, 1000))):
        folder = path.with_name(path.name + suffix)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{path.parent} holds a thousand folders called {path.name}; choose another")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once("this file system cannot be asked to flush: a power cut may take the last checkpoint")
    finally:
        os.close(handle)


@functools.cache
def warn_once(text: str) -> None:
    """Say something that is true of the whole process, once."""
    print(f"warning: {text}", file=sys.stderr)
