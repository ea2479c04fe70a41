"""The variational bound itself, Ho et al. 2020, Eq. 5."""

from torch import Tensor

from ddpm import elbo
from ddpm.gaussian import bits_per_dim
from ddpm.loss.base import Loss
from ddpm.prediction import Prediction


class VLB(Loss):
    """T times the exact term of time t: with t uniform, an unbiased estimate of the bound without L_T, in bits/dim."""

    trains_variance = True

    def __call__(self, prediction: Prediction, x_0: Tensor) -> Tensor:
        nats = elbo.term(prediction, x_0) * prediction.diffusion.T
        return bits_per_dim(nats, x_0[0].numel()).to(x_0.dtype)
