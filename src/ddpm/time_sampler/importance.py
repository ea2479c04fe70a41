"""Times drawn in proportion to the root mean square of their loss, Nichol & Dhariwal 2021, Eq. 18."""

import torch
from torch import Tensor

from ddpm.time_sampler.base import TimeSampler


class Importance(TimeSampler):
    """p_t proportional to sqrt(E[L_t^2]) over the latest losses at each time, weight 1 / (T p_t).

    Uniform until every time has a full history. Checkpoints include the history.

    Args:
        T: length of the chain.
        history: losses kept per time, >= 1; the paper uses 10.
        uniform_share: probability of a uniform draw, in (0, 1], which bounds the weights; the paper's code uses 0.001.
    """

    learns = True
    losses: Tensor
    count: Tensor

    def __init__(self, T: int, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__(T)
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}; Nichol & Dhariwal use 10")
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be in (0, 1], got {uniform_share}; 0.001 is typical")
        self.history = history
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(T, history, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(T, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """p_t for t = 1..T, float64, shape (T,)."""
        root = self.losses.square().mean(1).sqrt()
        uniform = torch.full_like(root, 1 / self.T)
        learned = (1 - self.uniform_share) * root / root.sum() + self.uniform_share * uniform
        ready = (self.count >= self.history).all() & (root.sum() > 0)
        return torch.where(ready, learned, uniform)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        p = self.probabilities().to(generator.device)
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return index + 1, (1 / (self.T * p[index])).float()

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        order = torch.argsort(t, stable=True)
        index, loss = t[order] - 1, loss.detach().double()[order]
        # Count equal times before each entry and from it on: only the last `history` are kept.
        before = torch.arange(len(index), device=index.device) - torch.searchsorted(index, index)
        after = torch.searchsorted(index, index, right=True) - torch.searchsorted(index, index) - before
        slot = torch.where(after <= self.history, (self.count[index] + before) % self.history, self.history)
        padded = torch.cat([self.losses, self.losses.new_zeros(self.T, 1)], 1)
        padded[index, slot] = loss
        self.losses.copy_(padded[:, :-1])
        self.count.index_add_(0, index, torch.ones_like(index))
