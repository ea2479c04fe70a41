"""Prediction of the posterior mean, Ho et al. 2020, Eq. 8: y = mu_tilde."""

from torch import Tensor

from ddpm.chain.process import Coefficients
from ddpm.parameterization.base import Parameterization


class Mu(Parameterization):
    """mu_tilde = c_0 x_0 + c_t x_t, Eq. 7."""

    is_mean = True

    def coefficients(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        return at.c_0, at.c_t
