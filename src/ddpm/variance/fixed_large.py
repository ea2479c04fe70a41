"""sigma_t^2 = beta_t, Ho et al. 2020, section 3.2: optimal for x_0 ~ N(0, I)."""

import torch
from torch import Tensor

from ddpm.chain.process import Process
from ddpm.chain.tables import gather
from ddpm.variance.base import Variance


class FixedLarge(Variance):
    """log beta_t; t = 1 uses beta_tilde_2 for a better decoder, as in the published code."""

    def log_var(self, process: Process, t: Tensor, raw: Tensor | None, x_t: Tensor) -> Tensor:
        first = gather(process.log_beta_tilde, t, x_t)
        later = gather(process.log_beta, t, x_t)
        return torch.where(t.reshape(first.shape) == 1, first, later)
