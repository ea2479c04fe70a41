"""Linear warm-up in beta, then constant; from the code of Ho et al. 2020."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Between


@dataclass(frozen=True)
class WarmUp(Between):
    """beta_t rises linearly from beta_1 to beta_T over the first `fraction` of the steps and stays there.

    Args:
        fraction: fraction of the steps in the warm-up, in (0, 1].
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}; Ho et al. compare 0.1 and 0.5")

    def beta(self) -> Tensor:
        rising = int(self.T * self.fraction + 1e-9)  # 100 * 0.29 is 28.999999999999996
        beta = torch.full((self.T,), self.beta_T, dtype=torch.float64)
        beta[:rising] = torch.linspace(self.beta_1, self.beta_T, rising, dtype=torch.float64)
        return beta
