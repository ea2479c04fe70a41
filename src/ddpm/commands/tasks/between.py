"""Options of the tasks that interpolate between two images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weights(points: int) -> Tensor:
    """Interpolation weights, evenly spaced in [0, 1]."""
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    return torch.linspace(0, 1, points)


def pairs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Split a list into consecutive pairs."""
    if len(indices) < 2 or len(indices) % 2:
        raise ValueError(f"images must be pairs, such as [0,1] or [0,1,2,3], got {list(indices)}")
    return list(zip(indices[::2], indices[1::2], strict=True))
