"""Low-discrepancy uniform times, Kingma et al. 2021, appendix I.1."""

import torch
from torch import Tensor

from ddpm.time_sampler.base import TimeSampler, unweighted


class Stratified(TimeSampler):
    """Equally spaced times with one random offset: each is uniform on 1..T, and the batch covers the range evenly."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        device = generator.device
        offset = torch.rand((), generator=generator, device=device, dtype=torch.float64)
        u = (offset + torch.arange(n, device=device) / n) % 1
        # Shuffle, so that each rank's slice covers the range too.
        u = u[torch.randperm(n, generator=generator, device=device)]
        return unweighted((u * self.T).long().clamp(max=self.T - 1) + 1)
