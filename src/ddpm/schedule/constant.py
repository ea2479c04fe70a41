"""Constant in beta."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Schedule


@dataclass(frozen=True)
class Constant(Schedule):
    """beta_t = value.

    Args:
        value: in (0, 1); at T = 1000, 0.01 ends at about the same alpha_bar_T as the linear schedule.
    """

    value: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.value < 1:
            raise ValueError(f"value must be in (0, 1), got {self.value}; try 0.01 for T = 1000")

    def beta(self) -> Tensor:
        return torch.full((self.T,), self.value, dtype=torch.float64)
