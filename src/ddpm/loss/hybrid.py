"""L_hybrid, Nichol & Dhariwal 2021, Eq. 16."""

import math

from torch import Tensor

from ddpm.loss.base import Loss
from ddpm.loss.simple import Simple
from ddpm.loss.vlb import VLB
from ddpm.model.prediction import Prediction


class Hybrid(Loss):
    """L_simple + lambda L_vlb, where the mean is detached in L_vlb, so that it trains only the variance.

    L_vlb is T times the term at time t, an estimate of the whole bound in bits/dim. With lambda = 0.001, a term has
    weight T / 1000, as in the published code.

    Args:
        vlb_weight: lambda, > 0; the paper uses 0.001.
    """

    trains_variance = True
    needs_learned_variance = True

    def __init__(self, vlb_weight: float = 0.001) -> None:
        if not 0 < vlb_weight < math.inf:
            raise ValueError(
                f"vlb_weight must be positive, got {vlb_weight}; Nichol & Dhariwal use 0.001, and loss=simple is 0"
            )
        self.vlb_weight = vlb_weight
        self.simple = Simple()
        self.vlb = VLB()

    def __call__(self, prediction: Prediction, x_0: Tensor) -> Tensor:
        term = self.vlb(prediction.with_mean_detached(), x_0)
        return self.simple(prediction, x_0) + self.vlb_weight * prediction.diffusion.T * term
