"""Which times a respaced chain visits."""

import torch
from torch import Tensor


def uniform(T: int, steps: int) -> Tensor:
    """`steps` times spread evenly over 1..T, both ends included (one step visits T alone).

    Raises:
        ValueError: steps is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be in 1..{T} (the length of the trained chain), got {steps}")
    if steps == 1:
        return torch.tensor([T])
    return torch.linspace(1, T, steps, dtype=torch.float64).round().long()
