"""Distances and nearest neighbours of many points, in blocks that bound the memory."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

ELEMENTS = 2**24
"""Most numbers in a block of points, and in one of distances: 128 MiB in float64."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """||x_i - y_j||^2 in float64, shape (N, M), of points (N, dim) and (M, dim); exact for whole numbers."""
    x, y = x.double(), y.double()
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def blocks(points: Tensor, others: int = 1) -> Iterator[Tensor]:
    """The points (N, dim) in turn, a block at a time, for distances to `others` points."""
    yield from torch.split(points, max(1, ELEMENTS // max(points.shape[1], others)))


def nearest(x: Tensor, y: Iterable[Tensor], k: int = 1) -> tuple[Tensor, Tensor]:
    """Squared distances (N, k), increasing, and indices (N, k) of the k points of y that are nearest to each of x.

    Args:
        x: points (N, dim) of any type.
        y: blocks (M, dim) of points, with at least k in all; indices count them through all blocks.
    """
    best = torch.full((len(x), k), torch.inf, dtype=torch.float64)
    which = torch.zeros((len(x), k), dtype=torch.int64)
    seen = 0
    for block in y:
        start = 0
        for points in blocks(x, len(block)):
            here = slice(start, start := start + len(points))
            distances = torch.cat([best[here], squared_distances(points, block)], 1)
            best[here], found = distances.topk(k, largest=False)
            which[here] = torch.where(found < k, which[here].gather(1, found.clamp(max=k - 1)), found - k + seen)
        seen += len(block)
    return best, which
