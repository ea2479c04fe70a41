"""Progressive lossy coding, Ho et al. 2020, section 4.3, Figure 5 and Table 4.

A receiver of x_T, ..., x_t has received L_T + ... + L_t and decodes x^_0 from x_t. After T - t + 1 of the T reverse
steps,

    rate        L_T + sum_{s > t} L_{s-1}, bits/dim
    distortion  root mean square of x_0 - x^_0 over images and dimensions, on a 0-255 scale
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.chain.gaussian import bits_per_dim
from ddpm.likelihood.elbo import Bound


class RateDistortion(NamedTuple):
    """One entry per number of reverse steps 1..T, float64, each of shape (T,).

    Attributes:
        steps: T - t + 1.
        rate: bits/dim received.
        rmse: error of x^_0, clipped to [-1, 1], on a 0-255 scale.
    """

    steps: Tensor
    rate: Tensor
    rmse: Tensor


def rate_distortion(bound: Bound) -> RateDistortion:
    """Rate-distortion curve over the number of reverse steps, averaged over the images of a bound."""
    sent = torch.cat([bound.prior.mean().view(1), bound.terms.mean(0)[1:].flip(0)])
    T = bound.terms.shape[1]
    return RateDistortion(
        torch.arange(1, T + 1),
        bits_per_dim(sent.cumsum(0), bound.dims),
        127.5 * bound.errors.mean(0).flip(0).sqrt(),
    )
