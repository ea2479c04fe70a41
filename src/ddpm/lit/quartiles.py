"""The loss in each quarter of the time range."""

import torch
from torch import Tensor
from torchmetrics import Metric


class QuartileLoss(Metric):
    """Mean loss over the images whose time lies in each quarter of 1..T, over all processes.

    Args:
        T: length of the chain.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T
        self.add_state("total", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Add a batch: times in 1..T and losses, each of shape (B,)."""
        quartile = (t - 1) * 4 // self.T
        self.total.index_add_(0, quartile, loss.detach().double())
        self.count += torch.bincount(quartile, minlength=4)

    def compute(self) -> Tensor:
        """Means, shape (4,); nan where no time fell."""
        return self.total / self.count
