"""Kernel Inception Distance, Binkowski et al. 2018."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm.metrics.base import Metric, Row, Sizes

_BLOCK = 1024
"""Samples at a time, which bounds the memory."""


class KID(Metric):
    """Squared maximum mean discrepancy of the features, unbiased, cubic kernel: mean and deviation over random subsets.

    `kid_std` is the deviation over subsets. `kid_error` is the standard error of the mean over samples and subsets, the
    real images being fixed.

    Args:
        subsets: number of subsets.
        subset_size: images in each; all of the smaller set if that has fewer, and the result states it. With no more
            images than that, all subsets are one, whose spread says nothing.
    """

    rows = (Row("kid_mean", "KID", "kid_error"), Row("kid_std", "  deviation over subsets"))

    def __init__(self, subsets: int = 100, subset_size: int = 1000) -> None:
        if subsets < 1 or subset_size < 2:
            raise ValueError(
                f"subsets must be at least 1 and subset_size at least 2, got {subsets} and {subset_size}; "
                f"100 and 1000 are typical"
            )
        self.subsets = subsets
        self.subset_size = subset_size

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        ours, theirs = samples["features"], real["features"]
        size = min(self.subset_size, len(ours), len(theirs))
        found = kid_features_to_metric(ours, theirs, kid_subsets=self.subsets, kid_subset_size=size, verbose=False)
        deviation = found["kernel_inception_distance_std"]
        return {
            "kid_mean": found["kernel_inception_distance_mean"],
            "kid_error": (variance(ours, theirs) + deviation**2 / self.subsets) ** 0.5,
            "kid_std": deviation,
            "kid_subset_size": size,
        }

    def caution(self, sizes: Sizes) -> str | None:
        if sizes.fewest > self.subset_size:
            return None
        return (
            f"KID is not reliable: {sizes} for subsets of {self.subset_size:,}; "
            f"take at least {self.subset_size + 1:,} of each"
        )


def variance(samples: Tensor, real: Tensor) -> float:
    """Variance over samples of the unbiased squared maximum mean discrepancy from fixed real images.

    Up to a constant, that is the mean over i != j of k(x_i, x_j) - w(x_i) - w(x_j) with w(x) = mean_j k(x, y_j). The
    infinitesimal jackknife estimates its variance by 4 / N times that of mean_j k(x_i, x_j) - w(x_i) over i, j != i. If
    both sets are of one distribution, this is up to twice the variance.

    Args:
        samples: features (N, dim), N at least 2.
        real: features (M, dim).
    """
    n = len(samples)
    influence = [
        (_kernel(x, samples).sum(1) - _diagonal(x)) / (n - 1) - _kernel(x, real).mean(1)
        for x in torch.split(samples, _BLOCK)
    ]
    return float(4 * torch.cat(influence).double().var() / n)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x^T y / dim + 1)^3, shape (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _diagonal(x: Tensor) -> Tensor:
    """Of the kernel, shape (N,)."""
    return (x.square().mean(1) + 1) ** 3
