"""An approximate model of p(x_0 | y) for solvers that only shift x^_0; any sampler can sample from it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.operator.base import Measurement, Operator, linear
from ddpm.parameterization.x0 import X0
from ddpm.sampler.base import Noise, Sampler
from ddpm.solver.base import Solver, conjugate_gradient


class Denoised(NamedTuple):
    """Prediction of the unconditional model at x_t, with its autograd graph.

    Attributes:
        x_t: noisy images, which require gradients, shape (B, C, H, W).
        x_0: x^_0(x_t), shape (B, C, H, W).
        variance: sigma_t^2 = 1 - alpha_bar_t, shape (B, 1, 1, 1).
        scale: sigma_t^2 / sqrt(alpha_bar_t), shape (B, 1, 1, 1): Cov[x_0 | x_t] = scale dx^_0/dx_t, and a change of
            the score changes x^_0 by scale times as much (Tweedie).
    """

    x_t: Tensor
    x_0: Tensor
    variance: Tensor
    scale: Tensor

    def pulled_back(self, v: Tensor) -> Tensor:
        """v' dx^_0/dx_t, shape (B, C, H, W)."""
        (found,) = torch.autograd.grad(self.x_0, self.x_t, v, retain_graph=True)
        return found


class PosteriorSolver(Solver):
    """Replaces E[x_0 | x_t] by E[x_0 | x_t, y] at every evaluation of any sampler, under the assumption that
    p(x_0 | x_t) = N(x^_0, V) with V independent of x_t:

        grad log p(y | x_t) = (dx^_0/dx_t)' A' (A V A' + sigma_y^2 I)^-1 (y - A x^_0)

    Args:
        iterations: conjugate gradient iterations for the inverse.
    """

    needs_linear = True

    def __init__(self, iterations: int) -> None:
        if iterations < 1:
            raise ValueError(f"solver.iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def check(self, operator: Operator, process: Process) -> None:
        super().check(operator, process)
        if process.zero_terminal_snr:
            raise ValueError(
                "this solver needs a terminal SNR above zero, but this model's is zero (beta_T = 1): x_T holds "
                "no information about the covariance of x_0; choose solver=dps or replacement"
            )

    @abstractmethod
    def covariance(self, at: Denoised, v: Tensor) -> Tensor:
        """V v, shape (B, C, H, W)."""

    def shift(self, at: Denoised, measurement: Measurement) -> Tensor:
        """E[x_0 | x_t, y] - E[x_0 | x_t], without gradients, shape (B, C, H, W)."""
        operator, shape = linear(measurement), at.x_t.shape[1:]

        def covariance_of_y(u: Tensor) -> Tensor:
            return operator(self.covariance(at, operator.adjoint(u, shape))) + measurement.sigma**2 * u

        u = conjugate_gradient(covariance_of_y, measurement.residual(at.x_0.detach()), self.iterations)
        return at.scale * at.pulled_back(operator.adjoint(u, shape))

    def sample(
        self,
        diffusion: Diffusion,
        sampler: Sampler,
        measurement: Measurement,
        noise: Noise,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        return sampler.sample(diffusion.with_output(Posterior(diffusion, self, measurement)), noise, on_step)


@dataclass(frozen=True)
class Posterior:
    """Output of a model whose prediction of x_0 is shifted by a solver."""

    diffusion: Diffusion
    solver: PosteriorSolver
    measurement: Measurement

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x_t, t = x_t.clone().requires_grad_(), t.expand(len(x_t)).clone()
            tables = self.diffusion.process.origin.coefficients(t)
            own, x0 = self.diffusion.parameterization, X0()

            def image(table: Tensor) -> Tensor:
                return table.to(x_t.dtype).view(-1, 1, 1, 1)

            y, rest = self.diffusion.output(x_t, t, label).tensor_split([x_t.shape[1]], dim=1)
            k_y, k_x = own.map_to(x0, tables)
            x_0 = image(k_y) * y + image(k_x) * x_t
            variance = tables.sigma**2
            at = Denoised(x_t, x_0, image(variance), image(variance / tables.sqrt_alpha_bar))
            shifted = x_0.detach() + self.solver.shift(at, self.measurement)
            k_y, k_x = x0.map_to(own, tables)
            return torch.cat([image(k_y) * shifted + image(k_x) * x_t, rest], 1).detach()
