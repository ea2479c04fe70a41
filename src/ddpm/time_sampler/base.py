"""Sampling of the times of a training batch."""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class TimeSampler(nn.Module):
    """Draws times, and weights that keep the mean loss unbiased for t uniform on 1..T.

    Every rank draws the times of all ranks from an identically seeded generator and takes its own slice, so ranks
    differ and stratification spans them.

    Args:
        T: length of the chain.
    """

    learns: bool = False
    """Whether `update` needs the losses of each step."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n times in 1..T (int64) and their weights (float32), each of shape (n,), on the generator's device."""

    def forward(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, world: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The slice of `rank` out of `world` * `batch_size` times and weights."""
        t, weight = self.draw(batch_size * world, generator)
        mine = slice(rank * batch_size, (rank + 1) * batch_size)
        return t[mine], weight[mine]

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses of a step; every rank must receive the losses of all ranks.

        Args:
            t: times in 1..T, shape (N,).
            loss: unweighted losses, >= 0, shape (N,).
        """


def unweighted(t: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform times, with weights of 1."""
    return t, torch.ones_like(t, dtype=torch.float32)
