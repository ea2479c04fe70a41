"""Walk, show and check the entries of a checkpoint."""

import math
import reprlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ddpm.support.text import printable

MOST = 50_000
"""The maximum number of entries in a checkpoint; lists may share parts, so even a small file can hold any number."""
DEEPEST = 20
PLAIN = (Tensor, dict, list, tuple, str, int, float, type(None))
LONGEST = 200
"""The maximum length of a key."""

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120
_BRIEF.maxlong = 40


def brief(value: Any) -> str:
    """A checkpoint's value for use in a message: one line of bounded length."""
    text = printable(_BRIEF.repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def walk(content: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, key and value of every entry of nested dicts and lists; a list's keys are its indices.

    Raises:
        ValueError: there are too many entries, they are nested too deeply, a value is neither a tensor nor plain, or a
            key is not a short name or number.
    """
    pending, count = [("", 0, content)], 0
    while pending:
        path, depth, value = pending.pop()
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        count += len(items)
        if count > MOST or depth > DEEPEST:
            raise ValueError(f"it holds more than {MOST} entries, or is nested more than {DEEPEST} deep")
        for key, each in items:
            if isinstance(key, bool) or not isinstance(key, str | int) or not _is_short(key):
                raise ValueError(f"it holds a key in {printable(path) or 'its top level'} that is not a valid name")
            here = f"{path}.{key}" if path else str(key)
            if not isinstance(each, PLAIN) or (isinstance(each, int) and not _is_short(each)):
                raise ValueError(f"its {printable(here)} is neither a tensor nor a plain value")
            yield printable(here), key, each
            if isinstance(each, dict | list | tuple):
                pending.append((here, depth + 1, each))


def _is_short(key: str | int) -> bool:
    return key.bit_length() <= 64 if isinstance(key, int) else len(key) <= LONGEST


def fitting(found: Any, like: Any, path: str, loose: bool = False) -> Any:
    """Return `found` if it can replace `like`: same keys, shapes and types, and finite numbers.

    Args:
        found: a value from a checkpoint.
        like: the value of a freshly built object; where it is not finite, `found` need not be.
        path: path of `found`, for errors.
        loose: allow missing keys and fractions, drop keys that `like` lacks, and accept any plain value for None.
    Raises:
        ValueError: names the entry and what it should be.
    """
    if isinstance(like, Tensor):
        return _fitting_tensor(found, like, path)
    if isinstance(like, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{path} is missing or damaged")
        if loose:
            taken = {key: fitting(found.get(key, each), each, f"{path}.{key}", loose) for key, each in like.items()}
            return taken if like else found
        differing = sorted(map(str, found.keys() ^ like.keys()))
        if differing:
            missing = "lacks" if differing[0] in map(str, like) else "holds"
            raise ValueError(f"{path} {missing} {printable(differing[0])}")
        return {key: fitting(found[key], each, f"{path}.{key}") for key, each in like.items()}
    if isinstance(like, list) and isinstance(found, list) and (loose or len(found) == len(like)):
        pairs = enumerate(zip(found, like, strict=False))
        return found if loose else [fitting(*pair, f"{path}.{i}") for i, pair in pairs]
    if _is_like(found, like, loose):
        return found
    raise ValueError(f"{path} is {brief(found)}, which cannot replace {brief(like)}")


def _fitting_tensor(found: Any, like: Tensor, path: str) -> Tensor:
    ordinary = (
        type(found) is Tensor
        and found.layout is torch.strided
        and found.device.type == "cpu"
        and not (found.is_nested or found.is_quantized)
    )
    if not ordinary:
        raise ValueError(f"{path} is not an ordinary tensor")
    if (found.dtype, found.shape) != (like.dtype, like.shape):
        kinds = (f"{each.dtype} of shape {list(each.shape)}" for each in (found, like))
        raise ValueError(f"{path} is a tensor of {next(kinds)}, not of {next(kinds)}")
    if not found.isfinite().all() and like.isfinite().all():
        raise ValueError(f"{path} holds values that are not finite numbers")
    return found


def _is_like(found: Any, like: Any, loose: bool) -> bool:
    if like is None:
        return found is None or (loose and isinstance(found, bool | int | float | str | Tensor))
    if isinstance(like, bool | str):
        return type(found) is type(like)
    fraction = loose or isinstance(like, float)
    fits = type(found) is int or (fraction and type(found) is float and math.isfinite(found))
    return isinstance(like, int | float) and fits and found >= 0
