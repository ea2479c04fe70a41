"""Prediction of the velocity, Salimans & Ho 2022, section 4: y = v."""

from torch import Tensor

from ddpm.chain.process import Coefficients
from ddpm.parameterization.base import Parameterization


class V(Parameterization):
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 = (sqrt(alpha_bar) x_t - x_0) / sqrt(1 - alpha_bar)."""

    def coefficients(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        return -1 / at.sigma, at.sqrt_alpha_bar / at.sigma
