"""Find the image files below a folder."""

import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from ddpm.data.decode import SUFFIXES
from ddpm.support.text import printable

MOST_KINDS = 6


def images_below(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Image files below a folder, following links.

    Each folder is read once, under its own name if a link also leads there, so loops end and no image appears twice.
    Names that begin with a dot are left out.

    Args:
        folder: the folder to search.
    Returns:
        The sorted files, and what was left out (kind -> names); all names are relative to the folder.
    """
    files: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    folders, links = deque([""]), deque[str]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        below = (folders or links).popleft()
        try:
            status = (folder / below).stat()
            entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
        except OSError:
            left_out["folders that cannot be read"].append(below)
            continue
        if (status.st_dev, status.st_ino) in seen:
            left_out["links to folders already read"].append(below)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            suffix = PurePath(entry.name).suffix.lower()
            if entry.name.startswith("."):
                left_out["hidden"].append(name)
            elif entry.is_symlink() and os.path.isdir(entry):
                links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif suffix not in SUFFIXES:
                left_out[suffix or "without an extension"].append(name)
            elif not os.path.isfile(entry) if entry.is_symlink() else not entry.is_file():
                left_out["broken links" if entry.is_symlink() else "special files"].append(name)
            else:
                files.append(name)
    return sorted(files), dict(left_out)


def account(left_out: Mapping[str, Sequence[str]]) -> str:
    """One line with the count of each kind and an example, the largest kinds first."""
    kinds = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"{len(names):,} {printable(kind)} (such as {printable(names[0])})" for kind, names in kinds[:MOST_KINDS]]
    rest = sum(len(names) for _, names in kinds[MOST_KINDS:])
    return ", ".join(parts) + (f", {rest:,} others" if rest else "")
