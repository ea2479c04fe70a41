"""The loss in each quarter of the time range."""

import torch
from torch import Tensor
from torchmetrics import Metric


class QuartileLoss(Metric):
    """Weighted mean loss of the images whose time lies in each quarter of 1..T, over all processes.

    Args:
        T: length of the chain.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T
        self.add_state("total", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, t: Tensor, loss: Tensor, weight: Tensor) -> None:
        """Add a batch: times in 1..T, losses and the weights of the time sampler, each of shape (B,)."""
        quartile = (t - 1) * 4 // self.T
        self.total.index_add_(0, quartile, (weight * loss.detach()).double())
        self.weight.index_add_(0, quartile, weight.double())

    def compute(self) -> dict[str, Tensor]:
        """The mean over all times, "loss", and over each quarter in which a time fell, "loss_q1" to "loss_q4"."""
        quarters = (self.total / self.weight).float()
        filled = {f"loss_q{i + 1}": quarters[i] for i in range(4) if self.weight[i] > 0}
        return {"loss": (self.total.sum() / self.weight.sum()).float()} | filled
