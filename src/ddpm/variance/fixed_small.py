"""sigma_t^2 = beta_tilde_t, Ho et al. 2020, section 3.2: optimal for data at a single point."""

from torch import Tensor

from ddpm.chain.process import Process
from ddpm.chain.tables import gather
from ddpm.variance.base import Variance


class FixedSmall(Variance):
    """log beta_tilde_t; t = 1 uses beta_tilde_2."""

    def log_var(self, process: Process, t: Tensor, raw: Tensor | None, x_t: Tensor) -> Tensor:
        return gather(process.log_beta_tilde, t, x_t)
