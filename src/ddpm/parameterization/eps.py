"""Prediction of the noise, Ho et al. 2020, Eqs. 9-11: y = eps."""

from torch import Tensor

from ddpm.chain.process import Coefficients
from ddpm.parameterization.base import Parameterization


class Eps(Parameterization):
    """eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)."""

    def coefficients(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        return -at.sqrt_alpha_bar / at.sigma, 1 / at.sigma
