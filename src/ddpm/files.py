"""Files that are there whole or not at all, and where those lie that can be computed again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def expanded(path: str) -> str:
    """A path as a user writes it, with the home directory in place of `~` or `~name`.

    Raises:
        ValueError: there is no such home directory.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"there is no home directory for {path}; give the whole path, or ./{path}")
    return whole


def cache() -> Path:
    """The folder of what can be computed again: `$DDPM_CACHE`, else `ddpm` in the user's cache.

    Raises:
        ValueError: the user has no home directory to look in.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(expanded(os.environ.get("DDPM_CACHE") or f"{home}/ddpm"))
    except ValueError as error:
        raise ValueError("there is no home directory to keep a cache in; set DDPM_CACHE to a folder") from error


@contextmanager
def written(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error.

    Args:
        path: the file to write or replace; its folder is made.
        durable: see to it that the content is on the disk first, so that not even a power cut leaves a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
