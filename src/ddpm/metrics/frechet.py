"""The Frechet distance of Gaussians with the moments of two sets of features, and its standard error.

d^2 = ||m - m'||^2 + tr(C + C') - 2 tr(C'^{1/2} C C'^{1/2})^{1/2}                 (Dowson & Landau 1982)

Its derivative as weight moves from all samples to a sample x, the empirical influence function, is

    I(x) = 2 (m - m')^T (x - m) + (x - m)^T (1 - A) (x - m) - tr((1 - A) C),
    A = C'^{1/2} (C'^{1/2} C C'^{1/2})^{-1/2} C'^{1/2},

where A maps N(m, C) to N(m', C'). Samples have no component where C has none, so the inverse is that on its range; it
serves fewer samples than features too. The infinitesimal jackknife (Jaeckel 1972; Efron 1982) estimates the variance
over samples by sum_i I(x_i)^2 / N^2. It is the limit of the bootstrap for small perturbations of the weights, and costs
no resampling. If both sets are of one distribution, I is noise and the error is too large, by a factor of up to
2^{1/2}; that of the bootstrap by up to 3^{1/2}.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 4096
"""Samples at a time, which bounds the memory."""


class Reference(NamedTuple):
    """What the distance needs of the set that stays fixed, float64.

    Attributes:
        mean: m', shape (dim,).
        root: C'^{1/2}, symmetric, shape (dim, dim).
    """

    mean: Tensor
    root: Tensor


class Frechet(NamedTuple):
    """A distance and how each sample moves it.

    Attributes:
        distance: d^2, at least 0 up to rounding.
        influence: I(x_i), with mean 0, float64, shape (N,).
    """

    distance: float
    influence: Tensor


def reference(features: Tensor) -> Reference:
    """The fixed set: features (M, dim), M at least 2."""
    mean, _, cov = _moments(features)
    values, vectors = torch.linalg.eigh(cov)
    return Reference(mean, vectors * values.clamp(min=0).sqrt() @ vectors.T)


def frechet(features: Tensor, to: Reference) -> Frechet:
    """The distance of the samples from the reference; all in float64.

    Args:
        features: (N, dim), N at least 2.
        to: of as many features.
    """
    mean, centred, cov = _moments(features)
    n, shift = len(centred), mean - to.mean
    values, vectors = torch.linalg.eigh(to.root @ cov @ to.root)
    range_ = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[range_], vectors[:, range_]
    distance = shift @ shift + cov.trace() + to.root.square().sum() - 2 * values.sqrt().sum()
    half = to.root @ (vectors * values**-0.25)  # A = half half^T
    quadratic = torch.cat([x.square().sum(1) - (x @ half).square().sum(1) for x in torch.split(centred, BLOCK)])
    quadratic = quadratic - quadratic.mean()  # the mean is tr((1 - A) C) (N - 1) / N
    return Frechet(float(distance), 2 * centred @ shift + quadratic * n / (n - 1))


def standard_error(influence: Tensor) -> float:
    """That of the infinitesimal jackknife, of a statistic with this influence of each of N samples, shape (N,)."""
    n = len(influence)
    return float(influence.square().sum() / (n * (n - 1))) ** 0.5


def _moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, centred features and unbiased covariance."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred, centred.T @ centred / (len(features) - 1)
