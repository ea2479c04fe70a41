"""P2 weighting, Choi et al. 2022."""

import math

from torch import Tensor

from ddpm.loss.base import WeightedError
from ddpm.model.diffusion import Diffusion


class P2(WeightedError):
    """Weight 1 / (k + snr_t)^gamma on the error of eps, for any parameterization.

    ||eps - eps^||^2 = snr_t ||x_0 - x^_0||^2 and ||y - y^||^2 = a_t^2 ||x_0 - x^_0||^2, so
    w_t = snr_t / (a_t^2 (k + snr_t)^gamma).

    Args:
        k: > 0; the paper uses 1.
        gamma: >= 0; the paper uses 1, and 0 is the unweighted error of eps.
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        if not (0 < k < math.inf and 0 <= gamma < math.inf):
            raise ValueError(f"k must be positive and gamma at least 0, got k={k}, gamma={gamma}; Choi et al. use 1, 1")
        self.k = k
        self.gamma = gamma

    def weight(self, diffusion: Diffusion, t: Tensor) -> Tensor:
        snr = diffusion.process.snr[t]
        return snr / (diffusion.target.k_y[t] ** 2 * (self.k + snr) ** self.gamma)
