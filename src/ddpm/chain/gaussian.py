"""Gaussians with diagonal covariance: divergence, discretised likelihood, units."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """N(mean, exp(log_var)); log_var in nats, broadcastable to mean."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sigma * noise."""
        return self.mean + (0.5 * self.log_var).exp() * noise


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in nats, per element, >= 0."""
    delta = q.log_var - p.log_var
    return 0.5 * (torch.expm1(delta) - delta + (q.mean - p.mean) ** 2 * torch.exp(-p.log_var))


def discretised_log_likelihood(x: Tensor, p: Gaussian, levels: int) -> Tensor:
    """Log-probability of each grey level's bin under p, Ho et al. 2020, Eq. 13.

    The K grey levels are 2k/(K-1) - 1. A bin extends 1/(K-1) to either side of its level; the outermost bins are
    open, so the K probabilities sum to one.

    Args:
        x: grey levels in [-1, 1], shape (B, ...); values in between are rounded to the nearest level.
        p: the Gaussian to discretise.
        levels: K >= 2.
    Returns:
        Log-probabilities in nats, per element, <= 0, in float64, which the far tails need.
    """
    half_bin = 1 / (levels - 1)
    mean = p.mean.double()
    inverse_sigma = torch.exp(-0.5 * p.log_var.double())
    # Undo the float32 rounding of x, so that neighbouring bins share their edge.
    level = ((x.double() + 1) / (2 * half_bin)).round()
    exact = 2 * half_bin * level - 1
    # Mirror the bin into the lower tail, where log_ndtr is precise.
    side = torch.where(exact > mean, -1.0, 1.0)
    distance = side * (exact - mean)
    upper = torch.special.log_ndtr((distance + half_bin) * inverse_sigma)
    lower = torch.special.log_ndtr((distance - half_bin) * inverse_sigma)
    # The outermost bins extend to infinity.
    outward = torch.where(level >= levels - 1, side, torch.where(level <= 0, -side, 0.0))
    upper = torch.where(outward > 0, torch.zeros_like(upper), upper)
    lower = torch.where(outward < 0, torch.full_like(lower, -torch.inf), lower)
    return upper + log1mexp(lower - upper)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, by whichever form is more precise."""
    near_zero = x > -math.log(2)
    small = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, small, large)


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Convert nats per image to bits per dimension."""
    return nats / (dims * math.log(2))
