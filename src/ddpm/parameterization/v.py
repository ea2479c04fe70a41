"""Prediction of the velocity, Salimans & Ho 2022, section 4: y = v."""

from torch import Tensor

from ddpm.parameterization.base import Parameterization
from ddpm.process import Process


class V(Parameterization):
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 = (sqrt(alpha_bar) x_t - x_0) / sqrt(1 - alpha_bar)."""

    def coefficients(self, process: Process) -> tuple[Tensor, Tensor]:
        sigma = process.sigma[1:]
        return -1 / sigma, process.sqrt_alpha_bar[1:] / sigma
