"""A learned interpolation between the two fixed variances, Nichol & Dhariwal 2021, Eq. 15."""

from torch import Tensor

from ddpm.chain.process import Process
from ddpm.chain.tables import gather
from ddpm.variance.base import Variance


class LearnedRange(Variance):
    """log sigma^2 = v log beta_t + (1 - v) log beta_tilde_t with v = (raw + 1) / 2, per element."""

    extra_channels = 1

    def log_var(self, process: Process, t: Tensor, raw: Tensor | None, x_t: Tensor) -> Tensor:
        assert raw is not None
        small, large = gather(process.log_beta_tilde, t, x_t), gather(process.log_beta, t, x_t)
        return small + (raw + 1) / 2 * (large - small)
