"""Pseudoinverse-guided diffusion, Song et al. 2023."""

from torch import Tensor

from ddpm.solver.posterior import Denoised, PosteriorSolver


class PiGDM(PosteriorSolver):
    """V = sigma_t^2 I, the covariance of x_0 given x_t for data with unit variance in every direction.

    Exact for data N(m, I). Otherwise the covariance is wrong, and the samples are biased.

    Args:
        iterations: conjugate gradient iterations, which need no network evaluations.
    """

    def __init__(self, iterations: int = 20) -> None:
        super().__init__(iterations)

    def covariance(self, at: Denoised, v: Tensor) -> Tensor:
        return at.variance * v
