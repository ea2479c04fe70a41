"""Prediction of the clean image, Ho et al. 2020, section 3.2: y = x_0."""

import torch
from torch import Tensor

from ddpm.chain.process import Coefficients
from ddpm.parameterization.base import Parameterization


class X0(Parameterization):
    """The clean image x_0."""

    def coefficients(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        return torch.ones_like(at.sigma), torch.zeros_like(at.sigma)
