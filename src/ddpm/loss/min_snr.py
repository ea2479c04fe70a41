"""Min-SNR weighting, Hang et al. 2023."""

from torch import Tensor

from ddpm.loss.base import WeightedError
from ddpm.model.diffusion import Diffusion


class MinSNR(WeightedError):
    """Weight min(snr_t, gamma) on the error of x_0, for any parameterization.

    ||y - y^||^2 = a_t^2 ||x_0 - x^_0||^2, so w_t = min(snr_t, gamma) / a_t^2.

    Args:
        gamma: maximum weight, > 0; the paper uses 5.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}; Hang et al. use 5")
        self.gamma = gamma

    def weight(self, diffusion: Diffusion, t: Tensor) -> Tensor:
        return diffusion.process.snr[t].clamp(max=self.gamma) / diffusion.target.k_y[t] ** 2
