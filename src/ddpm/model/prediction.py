"""The result of one evaluation of the network: x_0, eps, score and p(x_{t-1} | x_t)."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm.chain.gaussian import Gaussian
from ddpm.chain.tables import gather

if TYPE_CHECKING:
    from ddpm.model.diffusion import Diffusion


Clip = bool | float | str
"""How x^_0 is clipped: True, False, "published", or a quantile in (0, 1). See `Prediction`."""


def check_clip(name: str, clip: Clip) -> None:
    """Raise ValueError unless `clip` is valid; the message calls the setting `name`."""
    if not (isinstance(clip, bool) or clip == "published" or (isinstance(clip, float) and 0 < clip < 1)):
        raise ValueError(f"{name} must be true, false, published, or a quantile in (0, 1) such as 0.995, got {clip!r}")


@dataclass
class Prediction:
    """The network's output at (x_t, t), and what follows from it, in the shape of x_t.

    Attributes:
        diffusion: the model that made the prediction.
        x_t: noisy images.
        t: times in 1..T, shape (B,).
        y: the network's output in its own parameterization.
        raw: the channels of a learned variance, or None.
        clip: True clips x_0 to [-1, 1] and derives everything else from the clipped x_0. "published" does the same,
            but, like the code of Ho et al., leaves a predicted mean of p as it is. A number q in (0, 1) selects
            dynamic thresholding (Saharia et al. 2022): x_0 is clipped to [-s, s] and divided by s, the q-quantile of
            |x_0| over the image, but at least 1.
    """

    diffusion: "Diffusion"
    x_t: Tensor
    t: Tensor
    y: Tensor
    raw: Tensor | None
    clip: Clip

    @cached_property
    def x_0(self) -> Tensor:
        """x^_0, the clean image implied by the output (Eq. 15 for eps)."""
        x_0: Tensor = self.diffusion.to_x_0(self.y, self.x_t, self.t)
        if not self.clip:
            return x_0
        if not isinstance(self.clip, float):
            return x_0.clamp(-1, 1)
        s = torch.quantile(x_0.flatten(1).abs().float(), self.clip, dim=1).clamp(min=1).to(x_0.dtype)
        s = s.view(-1, *[1] * (x_0.dim() - 1))
        return x_0.clamp(-s, s) / s

    @cached_property
    def eps(self) -> Tensor:
        """The noise in x_t implied by the output."""
        if self.clip:
            eps: Tensor = self.diffusion.eps_from_x_0(self.x_0, self.x_t, self.t)
        else:
            eps = self.diffusion.to_eps(self.y, self.x_t, self.t)
        return eps

    @property
    def score(self) -> Tensor:
        """grad log q(x_t) = -eps / sqrt(1 - alpha_bar_t), Song et al. 2021."""
        return -self.eps / gather(self.diffusion.process.sigma, self.t, self.x_t)

    @cached_property
    def p(self) -> Gaussian:
        """p(x_{t-1} | x_t): mean mu_theta and log-variance in nats."""
        diffusion = self.diffusion
        if self.clip and not (self.clip == "published" and diffusion.parameterization.is_mean):
            mean = diffusion.process.posterior(self.x_0, self.x_t, self.t).mean
        else:
            mean = diffusion.to_mean(self.y, self.x_t, self.t)
        return Gaussian(mean, diffusion.variance.log_var(diffusion.process, self.t, self.raw, self.x_t))

    def with_mean_detached(self) -> "Prediction":
        """The same prediction, with gradients only through the variance."""
        return replace(self, y=self.y.detach())
