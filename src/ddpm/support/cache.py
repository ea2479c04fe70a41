"""A per-user cache of files that can be recomputed.

Files that another user could have written are never used.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import pwd
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

MAKING = ".making_"
"""Prefix of the folders in which files are made."""


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The path of the cached file `name`; if it is missing, `make` writes it to the path it is given.

    The cached name includes a hash of the content, so that a damaged file is detected and made again. Other files that
    `make` leaves in its folder are removed.

    Raises:
        OSError: the file cannot be written.
    """
    home = folder()
    stem, suffix = os.path.splitext(name)
    for found in home.glob(f"{stem}-*{suffix}"):
        if _is_whole(found):
            return found
        found.unlink(missing_ok=True)
    with _room(home) as room:
        made = room / name
        make(made)
        made.chmod(0o600)
        with made.open("rb") as file:
            path = home / f"{stem}-{_digest(file)}{suffix}"
        return made.replace(path)


def folder() -> Path:
    """The cache folder: `$DDPM_CACHE`, or else `ddpm` in `$XDG_CACHE_HOME` or `~/.cache`.

    Without a home directory it is in the system's temporary directory. A folder that other users can write to, or that
    this user cannot, is replaced by a temporary one for this process, with a warning. This costs time, but never
    changes a result.
    """
    if given := os.environ.get("DDPM_CACHE"):
        return _trusted(Path(os.path.expanduser(given)).absolute())
    homes = [os.environ.get("HOME", "")]
    with contextlib.suppress(KeyError):  # the system does not know this account
        homes.append(pwd.getpwuid(os.geteuid()).pw_dir)
    bases = [os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")), *(f"{home}/.cache" for home in homes if home)]
    base = next((Path(base) / "ddpm" for base in bases if os.path.isabs(base)), None)
    return _trusted(base or Path(tempfile.gettempdir()) / f"ddpm-{os.geteuid()}")


@functools.cache
def _trusted(path: Path) -> Path:
    try:
        path.mkdir(0o700, parents=True, exist_ok=True)
        fault = _fault(path.lstat(), path.stat()) or ("" if os.access(path, os.W_OK | os.X_OK) else "it is read-only")
    except OSError as error:
        fault = str(error)
    if not fault:
        return path
    warnings.warn(
        f"the cache {path} is not used, because {fault}; compiled kernels and trained classifiers will not be kept; "
        f"set DDPM_CACHE to a folder that you own and only you can write to (chmod go-w)",
        stacklevel=2,
    )
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory that is removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="ddpm-", ignore_cleanup_errors=True)


def _fault(*found: os.stat_result) -> str:
    """Why other users could have changed a file or folder, or a link to it; empty if they cannot."""
    if any(each.st_uid != os.geteuid() for each in found):
        return "it belongs to another user"
    return "other users can write to it" if found[-1].st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _is_whole(path: Path) -> bool:
    """Whether `path` is a regular file, not a link, that only this user can change and whose hash is in its name."""

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=opened) as file:
            found = os.fstat(file.fileno())
            return stat.S_ISREG(found.st_mode) and not _fault(found) and path.stem.endswith("-" + _digest(file))
    except OSError:
        return False


def _digest(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@contextlib.contextmanager
def _room(home: Path) -> Iterator[Path]:
    """A temporary folder to make a file in; if this process is killed, the next one to make a file removes it."""
    handle = os.open(home, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # another process is making a file, or the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in home.glob(f"{MAKING}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=home, ignore_cleanup_errors=True) as room:
            yield Path(room)
    finally:
        os.close(handle)
