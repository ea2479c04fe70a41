"""Names of files and classes: in what order, and how they are shown."""

import re
from pathlib import Path


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts numbers in names as numbers: a2 before a10, 2 before 10."""
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def printable(name: str | Path) -> str:
    """The name, with escapes in place of what a terminal would act upon or cannot show: control characters, newlines,
    and bytes that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
