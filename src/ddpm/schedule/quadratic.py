"""Linear in sqrt(beta), with more steps at low noise; from the code of Ho et al. 2020."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Between


@dataclass(frozen=True)
class Quadratic(Between):
    """sqrt(beta_t) rises linearly from sqrt(beta_1) to sqrt(beta_T)."""

    def beta(self) -> Tensor:
        root = torch.linspace(self.beta_1**0.5, self.beta_T**0.5, self.T, dtype=torch.float64)
        return root**2
