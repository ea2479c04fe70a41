"""Moment matching posterior sampling, Rozet et al. 2024."""

from torch import Tensor

from ddpm.operator.base import Measurement, linear
from ddpm.solver.base import conjugate_gradient
from ddpm.solver.posterior import Denoised, PosteriorSolver


class MMPS(PosteriorSolver):
    """p(x_0 | x_t) taken for the Gaussian of its mean x^_0 and its covariance V = scale dx^_0/dx_t (Tweedie).

        grad log p(y | x_t) = (dx^_0/dx_t)' A' (A V A' + sigma_y^2 I)^-1 (y - A x^_0)

    Exact for every Gaussian data distribution with enough iterations; for others the posterior given x_t is not
    Gaussian, and the samples are biased, less so the nearer t is to 0.

    Args:
        iterations: of conjugate gradients, each of which differentiates the network once.
    """

    needs_linear = True

    def __init__(self, iterations: int = 3) -> None:
        if iterations < 1:
            raise ValueError(f"solver.iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def shift(self, at: Denoised, measurement: Measurement) -> Tensor:
        operator, shape = linear(measurement), at.x_t.shape[1:]

        def covariance(u: Tensor) -> Tensor:
            v = at.scale * at.pulled_back(operator.adjoint(u, shape))
            return operator(v) + measurement.sigma**2 * u

        residual = measurement.residual(at.x_0.detach())
        u = conjugate_gradient(covariance, residual, self.iterations)
        return at.scale * at.pulled_back(operator.adjoint(u, shape))
