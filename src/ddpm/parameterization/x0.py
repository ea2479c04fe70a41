"""Prediction of the clean image, Ho et al. 2020, section 3.2: y = x_0."""

import torch
from torch import Tensor

from ddpm.parameterization.base import Parameterization
from ddpm.process import Process


class X0(Parameterization):
    """x_0 itself."""

    def coefficients(self, process: Process) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(process.sigma[1:])
        return one, torch.zeros_like(one)
