"""Linear in beta, Ho et al. 2020, section 4."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Between


@dataclass(frozen=True)
class Linear(Between):
    """beta_t rises linearly from beta_1 to beta_T."""

    def beta(self) -> Tensor:
        return torch.linspace(self.beta_1, self.beta_T, self.T, dtype=torch.float64)
