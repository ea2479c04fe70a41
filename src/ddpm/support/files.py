"""Atomic writes: a file appears completely or not at all."""

import csv
import errno
import functools
import io
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}
"""Errors of file systems that lack an operation, such as locks on Lustre or flushing a folder on CIFS."""


def expanded(path: str) -> str:
    """The path with `~` or `~name` expanded to the home directory.

    Raises:
        ValueError: there is no such home directory.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"there is no home directory for {path}; give the full path, or ./{path}")
    return whole


@contextmanager
def written(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an error.

    Args:
        path: the file to write or replace; its folder is created.
        durable: flush to disk first, so that not even a power cut leaves a partial file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**18)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))  # never a file that others put there
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `as_json(content)`.

    Raises:
        ValueError: the content holds NaN; nothing is written.
    """
    try:
        text = as_json(content)
    except ValueError as error:
        raise ValueError(f"{path} was not written, because it would contain NaN") from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(content: Any) -> str:
    """Plain values as JSON, which has no infinity: it becomes the text "inf" or "-inf".

    Raises:
        ValueError: the content holds NaN.
    """
    return json.dumps(_named(content), indent=2, allow_nan=False)


def _named(content: Any) -> Any:
    """`content` with infinities replaced by their names."""
    if isinstance(content, Mapping):
        return {key: _named(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_named(value) for value in content]
    return str(content) if isinstance(content, float) and math.isinf(content) else content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV with a header: `columns`, or the keys of the first row."""
    with written(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)


def write_npz(path: Path, arrays: "Mapping[str, torch.Tensor]") -> None:
    """Write CPU tensors as a compressed NumPy archive."""
    import numpy as np

    with written(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: each.numpy() for name, each in arrays.items()})  # type: ignore[arg-type]


def write_tensors(path: Path, content: Any, durable: bool = False) -> None:
    """Write tensors and plain values with torch.save; `durable` as in `written`."""
    import torch

    buffer = io.BytesIO()  # on a full disk, torch.save raises a RuntimeError that does not say so
    torch.save(content, buffer)
    with written(path, durable) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def new_folder(path: Path) -> Path:
    """Create `path`, or if it exists `path_1`, `path_2`, ..., and return the new folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"_{i}" for i in range(1, 1000))):
        folder = path.with_name(path.name + suffix)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{path.parent} already holds a thousand folders called {path.name}; choose another name")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once("this file system does not support flushing: a power cut may destroy the last checkpoint")
    finally:
        os.close(handle)


@functools.cache
def warn_once(text: str) -> None:
    """Print a warning once per process."""
    print(f"warning: {text}", file=sys.stderr)
