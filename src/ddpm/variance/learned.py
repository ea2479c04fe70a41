"""A learned diagonal covariance, as in Table 2 of Ho et al. 2020."""

from torch import Tensor

from ddpm.chain.process import Process
from ddpm.chain.tables import gather
from ddpm.variance.base import Variance


class Learned(Variance):
    """log sigma^2 = log beta_tilde_t + raw, per element, unbounded.

    The offset log beta_tilde_t gives a zero-initialised network a sensible variance, and lets raw carry over to a
    respaced chain.
    """

    extra_channels = 1

    def log_var(self, process: Process, t: Tensor, raw: Tensor | None, x_t: Tensor) -> Tensor:
        assert raw is not None
        return gather(process.log_beta_tilde, t, x_t) + raw
