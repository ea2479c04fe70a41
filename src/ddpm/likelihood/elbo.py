"""The variational bound of Ho et al. 2020, Eq. 5, as the length of a lossless code.

    L = L_T + sum_{t=2..T} L_{t-1} + L_0
    L_T      KL(q(x_T|x_0) || N(0, I))                      prior: no parameters
    L_{t-1}  KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t))       one step of the chain
    L_0      -log p(x_0|x_1), the discretised decoder       distortion

All in nats per image, in expectation over x_t ~ q(x_t|x_0).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.chain.gaussian import bits_per_dim, discretised_log_likelihood, kl, log1mexp
from ddpm.chain.process import Process
from ddpm.chain.tables import same
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction


def prior(process: Process, x_0: Tensor) -> Tensor:
    """L_T in nats per image, shape (B,), float64: 1/2 sum(alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar))."""
    alpha_bar, log_variance = process.alpha_bar[-1], log1mexp(process.log_alpha_bar[-1])
    return 0.5 * (alpha_bar * x_0.double() ** 2 - alpha_bar - log_variance).flatten(1).sum(1)


def term(prediction: Prediction, x_0: Tensor) -> Tensor:
    """L_{t-1} for t > 1 and L_0 for t = 1, in nats per image, shape (B,), float64.

    Args:
        prediction: the model's prediction at x_t ~ q(x_t | x_0).
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
    """
    posterior = prediction.diffusion.process.posterior(x_0, prediction.x_t, prediction.t)
    step = kl(posterior, prediction.p).double().flatten(1).sum(1)
    decoder = -discretised_log_likelihood(x_0, prediction.p, prediction.diffusion.levels).flatten(1).sum(1)
    return torch.where(prediction.t == 1, decoder, step)


def squared_error(prediction: Prediction, x_0: Tensor) -> Tensor:
    """(x_0 - x^_0)^2, mean over the dimensions of an image, shape (B,), float64; x^_0 is clipped to [-1, 1]."""
    return ((prediction.x_0.clamp(-1, 1) - x_0).double() ** 2).flatten(1).mean(1)


@dataclass(frozen=True)
class CodeLength(ABC):
    """The bound, or an estimate of it, for each of N images, in nats, float64.

    Attributes:
        prior: L_T, shape (N,).
        dims: dimensions per image.
    """

    prior: Tensor
    dims: int

    @property
    @abstractmethod
    def decoder(self) -> Tensor:
        """L_0, the distortion, shape (N,)."""

    @property
    @abstractmethod
    def steps(self) -> Tensor:
        """L_1 + ... + L_{T-1}, shape (N,)."""

    @property
    @abstractmethod
    def first_error(self) -> Tensor:
        """(x_0 - x^_0)^2 at t = 1, mean over the dimensions, shape (N,)."""

    @property
    def rate(self) -> Tensor:
        """L_1 + ... + L_T, shape (N,)."""
        return self.steps + self.prior

    @property
    def total(self) -> Tensor:
        """L, shape (N,)."""
        return self.rate + self.decoder

    @property
    @abstractmethod
    def variance_over_times(self) -> Tensor:
        """Variance of `total` due to the choice of times, shape (N,)."""

    @abstractmethod
    def by_time(self) -> tuple[Tensor, Tensor]:
        """The evaluated times t, and the mean of L_{t-1} over the images evaluated at each."""

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """All computed arrays by name, with code lengths in bits/dim."""

    def summary(self) -> dict[str, float | None]:
        """Means over the images in bits/dim, standard errors of the total, and the RMSE at t = 1 on a 0-255 scale.

        `standard_error` is taken over images and includes every source of variation between them;
        `standard_error_times` is the part that evaluating every time would remove.
        """
        bits = {"bits_per_dim": self.total, "prior": self.prior, "rate": self.rate, "distortion": self.decoder}
        n = len(self.total)
        spread = float(bits_per_dim(self.total, self.dims).std()) / n**0.5 if n > 1 else None
        of_times = bits_per_dim(self.variance_over_times.sum().sqrt() / n, self.dims)
        return {name: float(bits_per_dim(nats, self.dims).mean()) for name, nats in bits.items()} | {
            "standard_error": spread,
            "standard_error_times": float(of_times),
            "rmse": 127.5 * float(self.first_error.mean().sqrt()),
        }


@dataclass(frozen=True)
class Bound(CodeLength):
    """Every term of the bound.

    Attributes:
        terms: L_0, L_1, ..., L_{T-1} (index t - 1), nats per image, shape (N, T).
        errors: (x_0 - x^_0)^2 at t = 1..T, mean over the dimensions, shape (N, T).
    """

    terms: Tensor
    errors: Tensor

    @property
    def decoder(self) -> Tensor:
        return self.terms[:, 0]

    @property
    def steps(self) -> Tensor:
        return self.terms[:, 1:].sum(1)

    @property
    def first_error(self) -> Tensor:
        return self.errors[:, 0]

    @property
    def variance_over_times(self) -> Tensor:
        return torch.zeros_like(self.prior)

    def by_time(self) -> tuple[Tensor, Tensor]:
        return torch.arange(1, self.terms.shape[1] + 1), self.terms.mean(0)

    def arrays(self) -> dict[str, Tensor]:
        prior, terms = (bits_per_dim(nats, self.dims) for nats in (self.prior, self.terms))
        return {"prior": prior, "terms": terms, "squared_errors": self.errors}


@torch.inference_mode()
def bound(
    diffusion: Diffusion,
    x_0: Tensor,
    noise: Callable[[int], Tensor],
    clip: Clip = False,
    on_step: Callable[[], None] = lambda: None,
) -> Bound:
    """Every term of the bound, with one x_t ~ q(x_t | x_0) per image and time.

    Args:
        diffusion: the model, in evaluation mode.
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        noise: time in 1..T -> standard normal noise of x_t, shape (B, C, H, W).
        clip: clip x^_0 to [-1, 1] (see `Prediction`).
        on_step: called after each of the T evaluations.
    """
    terms, errors = [], []
    for step in range(1, diffusion.T + 1):
        t = same(step, x_0)
        prediction = diffusion.predict(diffusion.process.diffuse(x_0, t, noise(step)), t, clip)
        terms.append(term(prediction, x_0))
        errors.append(squared_error(prediction, x_0))
        on_step()
    return Bound(prior(diffusion.process, x_0), x_0[0].numel(), torch.stack(terms, 1), torch.stack(errors, 1))
