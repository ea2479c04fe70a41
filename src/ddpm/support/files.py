"""Files that are there whole or not at all."""

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
"""What a file system says that does not know an operation: Lustre of locks, CIFS of folders that are flushed."""


def expanded(path: str) -> str:
    """A path as a user writes it, with the home directory in place of `~` or `~name`.

    Raises:
        ValueError: there is no such home directory.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"there is no home directory for {path}; give the whole path, or ./{path}")
    return whole


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


def write_json(path: Path, content: Any) -> None:
    """Write `as_json(content)`.

    Raises:
        ValueError: it holds NaN; nothing is written.
    """
    try:
        text = as_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not written: it would hold a value that is not a number (NaN)") from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(content: Any) -> str:
    """Plain values as JSON, which knows finite numbers alone: infinity is the text "inf" or "-inf".

    Raises:
        ValueError: the content holds NaN.
    """
    return json.dumps(_named(content), indent=2, allow_nan=False)


def _named(content: Any) -> Any:
    """The same with names in the place of infinities."""
    if isinstance(content, Mapping):
        return {key: _named(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_named(value) for value in content]
    return str(content) if isinstance(content, float) and math.isinf(content) else content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, with a line of names: `columns`, or those of the first row."""
    with written(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)


def write_npz(path: Path, arrays: "Mapping[str, torch.Tensor]") -> None:
    """Write tensors on the CPU as NumPy's compressed arrays."""
    import numpy as np

    with written(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: each.numpy() for name, each in arrays.items()})  # type: ignore[arg-type]


def write_tensors(path: Path, content: Any, durable: bool = False) -> None:
    """Write tensors and plain values as torch.save does; `durable` as in `written`."""
    import torch

    buffer = io.BytesIO()  # torch.save makes of a full disk a RuntimeError that does not say so
    torch.save(content, buffer)
    with written(path, durable) as temporary:
        temporary.write_bytes(buffer.getbuffer())


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
