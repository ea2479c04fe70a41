"""What can be computed again, kept for the user's next process.

Nothing is used that another user could have put there.
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
"""How the folders begin in which files are made."""


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the cache, which `make` writes to the path that it is given unless the file is there.

    Its name there is longer by a hash of its content, so that a file that is not whole is known, and made anew. `make`
    may leave other files beside it; they are removed.

    Raises:
        OSError: it cannot be written.
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
    """The folder of the cache: `$DDPM_CACHE`; else `ddpm` in `$XDG_CACHE_HOME` or `~/.cache`.

    Without a home it lies among the temporary files. A folder to which others may write, or that cannot be written, is
    not used: then a warning says so, and there is a temporary one for this process. It costs time, but what is
    computed does not depend on the cache.
    """
    if given := os.environ.get("DDPM_CACHE"):
        return _trusted(Path(os.path.expanduser(given)).absolute())
    homes = [os.environ.get("HOME", "")]
    with contextlib.suppress(KeyError):  # of an account that the system does not know
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
        f"the cache {path} is not used, because {fault}; kernels are compiled and classifiers trained for this process "
        f"alone; set DDPM_CACHE to a folder that you own and nobody else may write to (chmod go-w)",
        stacklevel=2,
    )
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Of this process, and removed at its end."""
    return tempfile.TemporaryDirectory(prefix="ddpm-", ignore_cleanup_errors=True)


def _fault(*found: os.stat_result) -> str:
    """Why others could have changed a file or folder, where its name leads, or the link there; empty if they cannot."""
    if any(each.st_uid != os.geteuid() for each in found):
        return "it belongs to another user"
    return "others may write to it" if found[-1].st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _is_whole(path: Path) -> bool:
    """Whether it is a file of the user's own with the content that its name states; a link or a pipe is not."""

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
    """A folder to make a file in, removed after, or, if the process is killed, by the next that makes a file."""
    handle = os.open(home, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # others are making files, or the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in home.glob(f"{MAKING}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=home, ignore_cleanup_errors=True) as room:
            yield Path(room)
    finally:
        os.close(handle)
