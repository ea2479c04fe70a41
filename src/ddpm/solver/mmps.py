"""Moment matching posterior sampling, Rozet et al. 2024."""

from torch import Tensor

from ddpm.solver.posterior import Denoised, PosteriorSolver


class MMPS(PosteriorSolver):
    """V = Cov[x_0 | x_t] = sigma_t^2 / sqrt(alpha_bar_t) dx^_0/dx_t (Tweedie), from the network.

    Exact for Gaussian data with enough iterations. Otherwise the posterior given x_t is not Gaussian, and the samples
    are biased, less so as t approaches 0.

    Args:
        iterations: conjugate gradient iterations; each differentiates the network once.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__(iterations)

    def covariance(self, at: Denoised, v: Tensor) -> Tensor:
        return at.scale * at.pulled_back(v)
