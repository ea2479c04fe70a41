"""The variational bound, Ho et al. 2020, Eq. 5."""

from torch import Tensor

from ddpm.chain.gaussian import bits_per_dim
from ddpm.likelihood import elbo
from ddpm.loss.base import Loss
from ddpm.model.prediction import Prediction


class VLB(Loss):
    """The exact term at time t in bits/dim, as minimised by the code of Ho et al. (`loss_type="kl"`).

    For uniform t, T times its mean is an unbiased estimate of the bound without L_T, and is what is logged. The
    gradients omit the factor T, with which `trainer.gradient_clip_val` would clip at every step.
    """

    trains_variance = True

    def __call__(self, prediction: Prediction, x_0: Tensor) -> Tensor:
        return bits_per_dim(elbo.term(prediction, x_0), x_0[0].numel()).to(x_0.dtype)

    def logged(self, losses: Tensor, T: int) -> Tensor:
        return T * losses
