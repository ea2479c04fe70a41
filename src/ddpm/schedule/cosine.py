"""A cosine in alpha_bar, Nichol & Dhariwal 2021, Eq. 17."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.schedule.base import Schedule


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) * pi/2), each beta_t at most beta_max.

    Args:
        s: offset that keeps beta_1 from vanishing, >= 0.
        beta_max: upper bound on beta_t near t = T, in (0, 1]; 1 makes alpha_bar_T zero (Lin et al. 2024).
    """

    s: float = 0.008
    beta_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.s < math.inf:
            raise ValueError(f"s must be at least 0, got {self.s}; Nichol & Dhariwal use 0.008")
        if not 0 < self.beta_max <= 1:
            raise ValueError(f"beta_max must be in (0, 1], got {self.beta_max}; Nichol & Dhariwal use 0.999")

    def beta(self) -> Tensor:
        apart = math.pi / 2 / (self.T * (1 + self.s))
        angle = apart * torch.arange(self.T, -1, -1, dtype=torch.float64)  # f(t) = sin^2(angle)
        before, now = angle[:-1], angle[1:]
        # 1 - sin^2(now) / sin^2(before), without cancellation.
        beta = math.sin(apart) * (now + before).sin() / before.sin() ** 2
        beta[-1] = 1  # f(T) = 0
        return beta.clamp(max=self.beta_max)
