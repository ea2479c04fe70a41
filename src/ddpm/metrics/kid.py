"""Kernel Inception Distance, Binkowski et al. 2018."""

from collections.abc import Mapping

from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm.metrics.base import Metric, Row, Sizes


class KID(Metric):
    """Squared maximum mean discrepancy of the features, unbiased, cubic kernel: mean and deviation over random subsets.

    Args:
        subsets: number of subsets.
        subset_size: images in each; all of the smaller set if that has fewer, and the result states it. With no more
            images than that, all subsets are one, whose spread says nothing.
    """

    rows = (Row("kid_mean", "KID", "kid_std"),)

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
        return {
            "kid_mean": found["kernel_inception_distance_mean"],
            "kid_std": found["kernel_inception_distance_std"],
            "kid_subset_size": size,
        }

    def caution(self, sizes: Sizes) -> str | None:
        if sizes.fewest > self.subset_size:
            return None
        return (
            f"KID is not reliable: {sizes} for subsets of {self.subset_size:,}; "
            f"take at least {self.subset_size + 1:,} of each"
        )
