"""Small models in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.x0 import X0
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall


@dataclass
class Denoiser:
    """The output of a model that expresses one given denoising function x_t, t -> x^_0 in any parameterization.

    Args:
        x_0: the function; t counts from 1.
        target: (x_0, x_t, t) -> the network's output.
        raw: what a learned variance reads, a number or t -> numbers, or None.
    """

    x_0: Callable
    target: Callable
    raw: object = None

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        t = t.expand(len(x_t))
        y = self.target(self.x_0(x_t, t), x_t, t)
        if self.raw is None:
            return y
        raw = self.raw(t).view(-1, *(1,) * (y.ndim - 1)) if callable(self.raw) else self.raw
        return torch.cat([y, torch.zeros_like(y) + raw], 1)


def diffusion_of(x_0, process=None, parameterization=None, variance=None, levels=256, raw=None):
    """A Diffusion whose denoising function is x_0(x_t, t), expressed in the given parameterization."""
    process = process or Process(Linear(T=50, beta_T=0.2).beta())
    variance = variance or FixedSmall()
    model = Diffusion(nn.Identity(), process, parameterization or Eps(), variance, levels)
    raw = raw if variance.extra_channels else None
    return model.with_output(Denoiser(x_0, model.target, raw)).eval()


def continuous(x_0, process, parameterization, levels=256):
    """A Diffusion whose denoising function is x_0(x_t, t) at real times too."""

    def target(clean, x_t, t):
        k_y, k_x = (k.view(-1, 1, 1, 1) for k in X0().map_to(parameterization, process.coefficients(t)))
        return k_y * clean + k_x * x_t

    model = Diffusion(nn.Identity(), process, parameterization, FixedSmall(), levels)
    return model.with_output(Denoiser(x_0, target)).eval()


@pytest.fixture
def process():
    return Process(Linear().beta())


@pytest.fixture
def images():
    """8 images of 3x4x4 grey levels out of 256, float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, 3, 4, 4), generator=generator).double() * 2 / 255 - 1


@pytest.fixture
def noise():
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
