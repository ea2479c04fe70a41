"""Unbiased estimate of the bound of Ho et al. 2020, Eq. 5, from a few of its T terms, and its error.

Some times, always including t = 1, are evaluated for every image. The others are importance sampled: with inclusion
probabilities pi_t that sum to m, one time is drawn from each of m equal parts of their cumulative sum, and

    L = L_T + sum_{t exact} L_{t-1} + sum_{t drawn} L_{t-1} / pi_t

has the expectation of Eq. 5. The best pi_t is proportional to the root of E[L_{t-1}^2], measured by a pilot run on a
few images; a time whose pi_t would exceed one is evaluated for every image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.chain.gaussian import bits_per_dim
from ddpm.chain.tables import same
from ddpm.likelihood.elbo import CodeLength, prior, squared_error, term
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip
from ddpm.support.finite import finite

UNIFORM_SHARE = 0.01
"""Share of probability spread evenly, so that a time underestimated by the pilot does not get a huge weight."""


class Proposal(NamedTuple):
    """Which times to evaluate.

    Attributes:
        exact: times that are always evaluated, increasing from 1, shape (E,).
        inclusion: pi_t, float64, shape (T + 1,): 0 at t = 0, 1 where exact, summing to `drawn` over the others.
        drawn: m, the number of times drawn per image.
    """

    exact: Tensor
    inclusion: Tensor
    drawn: int

    def times(self, uniform: Tensor) -> Tensor:
        """Times of each image: first the exact ones, then the drawn ones in increasing order.

        Args:
            uniform: uniform numbers in [0, 1), shape (B, drawn).
        Returns:
            Times in 1..T, shape (B, E + drawn).
        """
        probability = self.inclusion.clone()
        probability[self.exact] = 0
        cumulated = probability.cumsum(0)
        quantile = torch.arange(self.drawn, dtype=torch.float64) + uniform.double()
        # Rounding may raise a quantile to the total.
        drawn = torch.searchsorted(cumulated, quantile, right=True).clamp(max=len(cumulated) - 1)
        exact = self.exact.expand(len(uniform), -1)
        return torch.cat([exact, drawn], 1)


def proposal(second_moment: Tensor, evaluations: int) -> Proposal:
    """The best proposal for a number of evaluations.

    Args:
        second_moment: E[L_{t-1}^2] for t = 2..T, any unit, float64, shape (T - 1,).
        evaluations: network evaluations per image, at least 3; T or more evaluate every time.
    Raises:
        ValueError: there are fewer than 3 evaluations; estimating the error takes two drawn times.
    """
    if evaluations < 3:
        raise ValueError(f"evaluations must be at least 3 per image, got {evaluations}; 10 is typical")
    T = len(second_moment) + 1
    if evaluations >= T:
        return Proposal(torch.arange(1, T + 1), (torch.arange(T + 1) > 0).double(), 0)
    root = second_moment.double().sqrt()
    root = torch.cat([root.new_zeros(2), root if root.sum() > 0 else torch.ones_like(root)])
    exact = torch.zeros(T + 1, dtype=torch.bool)
    exact[:2] = True
    while True:
        drawn = evaluations - int(exact.sum()) + 1
        left = torch.where(exact, 0.0, root)
        even = (~exact).double() / (~exact).sum()
        share = left / left.sum() if left.sum() > 0 else even
        inclusion = drawn * ((1 - UNIFORM_SHARE) * share + UNIFORM_SHARE * even)
        largest = int(inclusion.argmax())
        if inclusion[largest] < 1 or drawn == 2:
            break
        exact[largest] = True
    inclusion[exact] = 1
    inclusion[0] = 0
    return Proposal(exact.nonzero()[1:, 0], inclusion, drawn)


@torch.inference_mode()
def pilot(
    diffusion: Diffusion,
    x_0: Tensor,
    noise: Callable[[int], Tensor],
    clip: Clip = False,
    knots: int = 64,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """E[L_{t-1}^2] for t = 2..T from a few images at a few times, interpolated in log L over log t, shape (T - 1,).

    Args:
        diffusion: the model, in evaluation mode.
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        noise: time -> standard normal noise of x_t, shape (B, C, H, W).
        clip: clip x^_0 to [-1, 1] (see `Prediction`).
        knots: maximum number of times; they are denser at small t.
        on_step: called after each evaluation.
    """
    times = pilot_times(diffusion.T, knots)
    moments = []
    for step in times.tolist():
        t = same(step, x_0)
        prediction = diffusion.predict(diffusion.process.diffuse(x_0, t, noise(step)), t, clip)
        moments.append(float((finite(term(prediction, x_0), "terms") ** 2).mean()))
        on_step()
    every = np.log(np.arange(2, diffusion.T + 1))
    tiny = np.finfo(np.float64).tiny
    return torch.from_numpy(np.exp(np.interp(every, np.log(times.numpy()), np.log(np.maximum(moments, tiny)))))


def pilot_times(T: int, knots: int = 64) -> Tensor:
    """At most `knots` geometrically spaced times in 2..T, including both ends."""
    return torch.from_numpy(np.unique(np.geomspace(2, max(2, T), knots).round().astype(np.int64)))


@dataclass(frozen=True)
class SampledBound(CodeLength):
    """An unbiased estimate of the bound of each image.

    Attributes:
        proposal: the times that were evaluated.
        times: times of each image, the exact ones first, shape (N, E + m).
        terms: L_{t-1} at these times, nats per image, shape (N, E + m).
        error: (x_0 - x^_0)^2 at t = 1, mean over the dimensions, shape (N,).
    """

    proposal: Proposal
    times: Tensor
    terms: Tensor
    error: Tensor

    @property
    def decoder(self) -> Tensor:
        return self.terms[:, 0]

    @property
    def steps(self) -> Tensor:
        return self._weighted[:, 1:].sum(1)

    @property
    def first_error(self) -> Tensor:
        return self.error

    @property
    def variance_over_times(self) -> Tensor:
        """Estimated from differences between cyclic neighbours; unbiased, or too large."""
        drawn = self._weighted[:, len(self.proposal.exact) :]
        return 0.5 * ((drawn - drawn.roll(1, 1)) ** 2).sum(1)

    def by_time(self) -> tuple[Tensor, Tensor]:
        times, group = torch.unique(self.times, return_inverse=True)
        count = torch.bincount(group.flatten())
        return times, torch.bincount(group.flatten(), self.terms.flatten()) / count

    def arrays(self) -> dict[str, Tensor]:
        prior, terms = (bits_per_dim(nats, self.dims) for nats in (self.prior, self.terms))
        return {"prior": prior, "terms": terms, "times": self.times, "inclusion": self.proposal.inclusion}

    @property
    def _weighted(self) -> Tensor:
        return self.terms / self.proposal.inclusion[self.times]


@torch.inference_mode()
def sampled_bound(
    diffusion: Diffusion,
    x_0: Tensor,
    noise: Callable[[Tensor], Tensor],
    proposal: Proposal,
    uniform: Tensor,
    clip: Clip = False,
    on_step: Callable[[], None] = lambda: None,
) -> SampledBound:
    """Estimate the bound at the times of a proposal, with one x_t ~ q(x_t | x_0) per image and time.

    Args:
        diffusion: the model, in evaluation mode.
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        noise: times, shape (B,) -> standard normal noise of each x_t, shape (B, C, H, W).
        proposal: the times to evaluate.
        uniform: uniform numbers that choose the drawn times, in [0, 1), shape (B, proposal.drawn).
        clip: clip x^_0 to [-1, 1] (see `Prediction`).
        on_step: called after each evaluation.
    """
    times = proposal.times(uniform)
    terms: list[Tensor] = []
    for t, here in zip(times.unbind(1), times.to(x_0.device).unbind(1), strict=True):
        prediction = diffusion.predict(diffusion.process.diffuse(x_0, here, noise(t)), here, clip)
        if not terms:
            error = squared_error(prediction, x_0).cpu()
        terms.append(term(prediction, x_0))
        on_step()
    length = prior(diffusion.process, x_0).cpu()
    return SampledBound(length, x_0[0].numel(), proposal, times, torch.stack(terms, 1).cpu(), error)
