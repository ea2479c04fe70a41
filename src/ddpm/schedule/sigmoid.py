"""A sigmoid in beta: flat at both ends."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Between


@dataclass(frozen=True)
class Sigmoid(Between):
    """beta_t = beta_1 + (beta_T - beta_1) sigmoid(u), u from -range to range.

    Args:
        range: half-width of the interval of u, > 0.
    """

    range: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.range < math.inf:
            raise ValueError(f"range must be positive, got {self.range}; 6 is typical")

    def beta(self) -> Tensor:
        u = torch.linspace(-self.range, self.range, self.T, dtype=torch.float64)
        return self.beta_1 + (self.beta_T - self.beta_1) * u.sigmoid()
