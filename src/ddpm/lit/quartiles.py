"""The loss in each quarter of the time range."""

import torch
from torch import Tensor
from torchmetrics import Metric

NEVER = 2**62
"""A step that no run reaches."""


class QuartileLoss(Metric):
    """Weighted mean loss of each quarter of the times 1..T, over all processes.

    Args:
        T: length of the chain.

    Attributes:
        non_finite: first step with a non-finite loss in each quarter, `NEVER` if there was none.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor
    non_finite: Tensor

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T
        self.add_state("total", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("non_finite", torch.full((4,), NEVER), dist_reduce_fx="min")

    def update(self, t: Tensor, loss: Tensor, weight: Tensor, step: int) -> None:
        """Add the batch of a step: times in 1..T, losses and time sampler weights, each of shape (B,)."""
        quartile = (t - 1) * 4 // self.T
        self.total.index_add_(0, quartile, (weight * loss.detach()).double())
        self.weight.index_add_(0, quartile, weight.double())
        self.non_finite.scatter_reduce_(0, quartile, torch.where(loss.isfinite(), NEVER, step), "amin")

    def compute(self) -> dict[str, Tensor]:
        """The mean over all times, "loss", and over each non-empty quarter, "loss_q1" to "loss_q4"."""
        quarters = (self.total / self.weight).float()
        filled = {f"loss_q{i + 1}": quarters[i] for i in range(4) if self.weight[i] > 0}
        return {"loss": (self.total.sum() / self.weight.sum()).float()} | filled
