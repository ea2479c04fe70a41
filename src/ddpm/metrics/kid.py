"""Kernel Inception Distance, Binkowski et al. 2018."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm.metrics.base import Metric, Row, Sizes


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

    Up to a constant it is a U-statistic, the mean over i != j of h(x_i, x_j) = k(x_i, x_j) - w(x_i) - w(x_j) with
    w(x) = mean_j k(x, y_j), of variance 4 zeta_1 / N + 2 zeta_2 / N^2 + O(zeta_1 / N^2), zeta_1 = Var E[h | x_i] and
    zeta_2 = Var h (Hoeffding 1948). The variance of the means over j of h(x_i, x_j) estimates zeta_1 + zeta_2 / N.

    Args:
        samples: features (N, dim), N at least 2.
        real: features (M, dim).
    """
    n = len(samples)
    toward = torch.cat([_kernel(block, real).mean(1) for block in samples.split(_BLOCK)])
    means, squares = [], 0.0
    for start, block in enumerate(samples.split(_BLOCK)):
        rows = torch.arange(len(block))
        h = _kernel(block, samples) - toward[start * _BLOCK + rows, None] - toward
        h[rows, start * _BLOCK + rows] = 0
        means.append(h.sum(1) / (n - 1))
        squares += float(h.square().sum())
    each = torch.cat(means).double()
    zeta_2 = squares / (n * (n - 1)) - float(each.mean()) ** 2
    zeta_1 = max(0.0, float(each.var()) - zeta_2 / n)
    return 4 * zeta_1 / n + 2 * zeta_2 / n**2


_BLOCK = 1024
"""Samples at a time, which bounds the memory."""


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x^T y / dim + 1)^3, shape (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
