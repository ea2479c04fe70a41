"""A configuration as values by dotted name."""

import math
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

from ddpm.reporting.contents import mapping
from ddpm.support.text import printable

MOST_VALUES = 5000
MOST_LEVELS = 40

Scalar = str | int | float | bool | None


def flat(config: Any) -> dict[str, Scalar]:
    """Values by dotted name; a list is one value, its text. Callbacks that are set to null are left out.

    `${a.b}` is replaced by what it names; other interpolations stay as they are.

    Raises:
        ValueError: it is no configuration, or one that expands to very many values.
    """
    root, visited = mapping(config, "the configuration"), count(1)

    def named(path: str) -> Any:
        node: Any = root
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def leaves(node: Any, name: str, level: int) -> Iterator[tuple[str, Scalar]]:
        if level > MOST_LEVELS or next(visited) > MOST_VALUES:
            raise ValueError(f"the configuration has more than {MOST_VALUES:,} values, or {MOST_LEVELS} levels")
        if isinstance(node, str) and (path := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            node = node if (value := named(path[1])) is None else value
        if isinstance(node, list) and any(isinstance(each, dict | list) for each in node):
            node = dict(enumerate(node))
        if isinstance(node, dict) and (node or not name):
            for key, value in node.items():
                yield from leaves(value, f"{name}.{key}" if name else str(key), level + 1)
        elif isinstance(node, list):
            yield name, f"[{', '.join(text(each) for each in node)}]"
        elif isinstance(node, float) and not math.isfinite(node):
            yield name, str(node)  # as in JSON
        else:
            yield name, node if isinstance(node, str | int | float | None) else str(node)

    nulls = re.compile(r"callbacks\.\w+")
    return {name: value for name, value in leaves(root, "", 0) if value is not None or not nulls.fullmatch(name)}


def text(value: Scalar) -> str:
    """A value as it is typed."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return printable(f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value))


def option(name: str) -> str:
    """The short name of a class of `_target_`: of its file for ddpm's own, where each option is a file."""
    parts = name.split(".")
    return printable(parts[-2].rstrip("_") if parts[0] == "ddpm" and len(parts) > 2 else parts[-1])
