"""Sort and display names of files and classes."""

import re
from collections.abc import Sequence
from pathlib import Path


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers in names as numbers: a2 before a10, 2 before 10."""
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def printable(name: str | Path) -> str:
    """The name with escapes in place of control characters, newlines and bytes that are not UTF-8."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def numbered(names: Sequence[str], most: int = 12) -> str:
    """Names numbered from 0, in one line; long lists are shortened in the middle."""
    if all(name == str(i) for i, name in enumerate(names)):
        return f"0..{len(names) - 1}"
    each = [f"{i} {printable(name)}" for i, name in enumerate(names)]
    return ", ".join(each if len(each) <= most else [*each[: most - 2], "...", each[-1]])
