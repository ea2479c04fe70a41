"""Files that are there whole or not at all, and where those lie that can be computed again."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


def cache() -> Path:
    """The folder of what can be computed again: `$DDPM_CACHE`, else `ddpm` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DDPM_CACHE") or Path(home) / "ddpm").expanduser()


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


def write_npz(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    """Write tensors on the CPU as NumPy's compressed arrays."""
    with written(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: each.numpy() for name, each in arrays.items()})  # type: ignore[arg-type]


def write_tensors(path: Path, content: Any, durable: bool = False) -> None:
    """Write tensors and plain values as torch.save does; `durable` as in `written`."""
    buffer = io.BytesIO()  # torch.save makes of a full disk a RuntimeError that does not say so
    torch.save(content, buffer)
    with written(path, durable) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
