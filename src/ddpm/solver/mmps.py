"""Moment matching posterior sampling, Rozet et al. 2024."""

from torch import Tensor

from ddpm.solver.posterior import Denoised, PosteriorSolver


class MMPS(PosteriorSolver):
    """V = Cov[x_0 | x_t] = sigma_t^2 / sqrt(alpha_bar_t) dx^_0/dx_t (Tweedie), as the network has it.

    Exact for every Gaussian data distribution with enough iterations; for others the posterior given x_t is not
    Gaussian, and the samples are biased, less so the nearer t is to 0.

    Args:
        iterations: of conjugate gradients, each of which differentiates the network once.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__(iterations)

    def covariance(self, at: Denoised, v: Tensor) -> Tensor:
        return at.scale * at.pulled_back(v)
