"""Independent uniform times, Ho et al. 2020, Algorithm 1."""

import torch
from torch import Tensor

from ddpm.time_sampler.base import TimeSampler, unweighted


class Uniform(TimeSampler):
    """t ~ U{1, ..., T}."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return unweighted(torch.randint(1, self.T + 1, (n,), generator=generator, device=generator.device))
