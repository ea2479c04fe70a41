"""Pseudoinverse-guided diffusion, Song et al. 2023."""

from torch import Tensor

from ddpm.operator.base import Measurement, linear
from ddpm.solver.base import conjugate_gradient
from ddpm.solver.posterior import Denoised, PosteriorSolver


class PiGDM(PosteriorSolver):
    """p(x_0 | x_t) taken for N(x^_0, sigma_t^2 I), the covariance of data with unit variance in every direction.

        grad log p(y | x_t) = (dx^_0/dx_t)' A' (sigma_t^2 A A' + sigma_y^2 I)^-1 (y - A x^_0)

    Exact for data N(m, I); for others the covariance is not that of the data, and the samples are biased.

    Args:
        iterations: of conjugate gradients, which cost no evaluation of the network.
    """

    needs_linear = True

    def __init__(self, iterations: int = 20) -> None:
        if iterations < 1:
            raise ValueError(f"solver.iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def shift(self, at: Denoised, measurement: Measurement) -> Tensor:
        operator, shape = linear(measurement), at.x_t.shape[1:]

        def covariance(u: Tensor) -> Tensor:
            variance = at.variance.view(-1, *[1] * (u.dim() - 1))
            return variance * operator(operator.adjoint(u, shape)) + measurement.sigma**2 * u

        residual = measurement.residual(at.x_0.detach())
        u = conjugate_gradient(covariance, residual, self.iterations)
        return at.scale * at.pulled_back(operator.adjoint(u, shape))
