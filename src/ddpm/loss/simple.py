"""L_simple, Ho et al. 2020, Eq. 14."""

import torch
from torch import Tensor

from ddpm.loss.base import WeightedError
from ddpm.model.diffusion import Diffusion


class Simple(WeightedError):
    """Unweighted error of the network's own output, w_t = 1."""

    def weight(self, diffusion: Diffusion, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)
