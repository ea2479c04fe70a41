"""Data from files that may have been written by somebody else: read, checked, and never executed."""

import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.support.text import printable

MOST_BYTES = 256 * 2**20
"""Of a file; a larger one is not a run's."""

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """A function that was measured at points.

    Attributes:
        key: what identifies a point in every run, such as the step, shape (K,).
        x: position on the axis; often the key.
        y: the values, finite.
    """

    key: Array
    x: Array
    y: Array


def content(folder: Path, name: str, most: int = MOST_BYTES) -> bytes | None:
    """The bytes of a regular file in a folder; None if there is none, or a link leads to it from outside.

    Raises:
        ValueError: the file is too large.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > most:
            raise ValueError(f"{name} has {status.st_size:,} bytes, more than {most:,}")
        return file.read(most)


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def parsed(cell: str) -> float | None:
    """A finite number from its text, or None."""
    try:
        return number(float(cell))
    except ValueError:
        return None


def mapping(value: Any, name: str) -> dict[str, Any]:
    """Names with values, as a file must hold.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is damaged: it holds no names")
    return value


def texts(value: Any) -> list[str]:
    """A list as printable texts; anything else as none."""
    return [printable(str(each)) for each in value] if isinstance(value, list) else []
