"""Prediction of the noise, Ho et al. 2020, Eqs. 9-11: y = eps."""

from torch import Tensor

from ddpm.parameterization.base import Parameterization
from ddpm.process import Process


class Eps(Parameterization):
    """eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)."""

    def coefficients(self, process: Process) -> tuple[Tensor, Tensor]:
        sigma = process.sigma[1:]
        return -process.sqrt_alpha_bar[1:] / sigma, 1 / sigma
