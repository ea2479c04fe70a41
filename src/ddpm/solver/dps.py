"""Diffusion posterior sampling, Chung et al. 2023."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ddpm.chain.tables import same
from ddpm.model.diffusion import Diffusion
from ddpm.operator.base import Measurement
from ddpm.sampler.base import Noise, Sampler, State
from ddpm.solver.base import Solver


class DPS(Solver):
    """The sampler's x_{t-1} minus scale grad ||y - A(x^_0(x_t))||, Algorithm 1 with its step size.

    For any differentiable operator. The step ignores the measurement noise and does not follow a posterior: the
    samples fit the measurement, but their spread is meaningless. The usual scales, 0.3 to 1, are meant for a chain of
    1000 steps.

    Args:
        scale: step size, zeta in the paper, > 0.
    """

    def __init__(self, scale: float = 0.5) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"solver.scale must be above 0, got {scale}")
        self.scale = scale

    def sample(
        self,
        diffusion: Diffusion,
        sampler: Sampler,
        measurement: Measurement,
        noise: Noise,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        chain = sampler.chain(diffusion)
        x, state = noise(0), None
        for step in range(chain.T, 0, -1):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                at = chain.predict(x, same(step, x), sampler.clip)
                distance = measurement.residual(at.x_0).flatten(1).norm(dim=1).sum()
                (gradient,) = torch.autograd.grad(distance, x)
            with torch.no_grad():
                at = replace(at, x_t=x.detach(), y=at.y.detach())
                x = sampler.move(chain, at, step, noise, state) - self.scale * gradient
            state = State(step - 1, x, at.x_0)
            on_step()
        return x
