"""The variational bound of Ho et al. 2020, Eq. 5, as the length of a lossless code.

    L = L_T + sum_{t=2..T} L_{t-1} + L_0
    L_T      KL(q(x_T|x_0) || N(0, I))                      prior: no parameters
    L_{t-1}  KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t))       one step of the chain
    L_0      -log p(x_0|x_1), the discretised decoder       distortion

All in nats per image, on average over x_t ~ q(x_t|x_0).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.gaussian import bits_per_dim, discretised_log_likelihood, kl
from ddpm.prediction import Prediction
from ddpm.process import Process


def prior(process: Process, x_0: Tensor) -> Tensor:
    """L_T in nats per image, shape (B,), float64: 1/2 sum(alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar))."""
    alpha_bar = process.alpha_bar[-1]
    return 0.5 * (alpha_bar * x_0.double() ** 2 - alpha_bar - torch.log1p(-alpha_bar)).flatten(1).sum(1)


def term(prediction: Prediction, x_0: Tensor) -> Tensor:
    """L_{t-1} where t > 1 and L_0 where t = 1, in nats per image, shape (B,), float64.

    Args:
        prediction: of the model at x_t ~ q(x_t | x_0).
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
    """
    posterior = prediction.diffusion.process.posterior(x_0, prediction.x_t, prediction.t)
    step = kl(posterior, prediction.p).double().flatten(1).sum(1)
    decoder = -discretised_log_likelihood(x_0, prediction.p, prediction.diffusion.levels).flatten(1).sum(1)
    return torch.where(prediction.t == 1, decoder, step)


@dataclass(frozen=True)
class Bound:
    """The bound of each of N images, in nats per image, float64.

    Attributes:
        prior: L_T, shape (N,).
        terms: L_0, L_1, ..., L_{T-1} (index t - 1), shape (N, T).
        dims: dimensions of an image.
    """

    prior: Tensor
    terms: Tensor
    dims: int

    @property
    def decoder(self) -> Tensor:
        """L_0, the distortion, nats per image, shape (N,)."""
        return self.terms[:, 0]

    @property
    def rate(self) -> Tensor:
        """L_1 + ... + L_T, nats per image, shape (N,)."""
        return self.terms[:, 1:].sum(1) + self.prior

    @property
    def total(self) -> Tensor:
        """L, nats per image, shape (N,)."""
        return self.rate + self.decoder

    def summary(self) -> dict[str, float]:
        """Means over the images in bits/dim, with the standard error of the total over images."""
        bits = {
            "bits_per_dim": self.total,
            "prior": self.prior,
            "rate": self.rate,
            "distortion": self.decoder,
        }
        means = {name: float(bits_per_dim(nats, self.dims).mean()) for name, nats in bits.items()}
        spread = bits_per_dim(self.total, self.dims).std() / len(self.total) ** 0.5
        return means | {"standard_error": float(spread)}


@torch.inference_mode()
def bound(
    diffusion: Diffusion,
    x_0: Tensor,
    noise: Callable[[int], Tensor],
    clip: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> Bound:
    """Every term of the bound, with one x_t ~ q(x_t | x_0) for each image and time.

    Args:
        diffusion: the model, in evaluation mode.
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        noise: time in 1..T -> the standard normal of x_t, shape (B, C, H, W).
        clip: clip x^_0 to [-1, 1].
        on_step: called after each of the T evaluations.
    """
    terms = []
    for step in range(1, diffusion.T + 1):
        t = torch.full((len(x_0),), step, device=x_0.device)
        x_t = diffusion.process.diffuse(x_0, t, noise(step))
        terms.append(term(diffusion.predict(x_t, t, clip), x_0))
        on_step()
    return Bound(prior(diffusion.process, x_0), torch.stack(terms, 1), x_0[0].numel())
