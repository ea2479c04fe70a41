"""FID without the bias of a finite number of samples, Chong & Forsyth 2020."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ddpm.metrics.base import Metric, Row, Sizes
from ddpm.metrics.frechet import frechet, reference, standard_error

SMALLEST = 0.1
"""Size of the smallest subset, as a share of the samples: that of Chong & Forsyth, 5,000 of 50,000."""


class FIDInfinity(Metric):
    """FID for N to infinity: FID of random subsets of the samples, of evenly spaced sizes n, extrapolated in 1/n.

    FID_n = FID_infinity + c / n + O(1 / n^2); FID_infinity and c are fitted by least squares. `fid_infinity_error` is
    the standard error over samples of the fitted value, by the infinitesimal jackknife (`metrics.frechet`) of all
    subsets together. The real images are fixed: the bias that comes from their own finite number remains, and shows in
    the floor.

    Needs at least as many samples in the smallest subset, a tenth of them, as features.

    Args:
        sizes: number of subsets, at least 2.
    """

    distance = "fid_infinity"
    rows = (Row("fid_infinity", "FID, N to infinity", "fid_infinity_error"),)
    least = round(2 / SMALLEST)

    def __init__(self, sizes: int = 15) -> None:
        if sizes < 2:
            raise ValueError(f"sizes must be at least 2, got {sizes}; 15 is typical")
        self.sizes = sizes

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        features, to = samples["features"], reference(real["features"])
        generator = torch.Generator().manual_seed(0)
        sizes = torch.linspace(SMALLEST * len(features), len(features), self.sizes, dtype=torch.float64).round()
        intercept = torch.linalg.pinv(torch.stack([torch.ones_like(sizes), 1 / sizes], 1))[0]
        value, influence = 0.0, torch.zeros(len(features), dtype=torch.float64)
        for n, weight in zip(sizes.int().tolist(), intercept.tolist(), strict=True):
            chosen = torch.randperm(len(features), generator=generator)[:n]
            found = frechet(features[chosen], to)
            value += weight * found.distance
            influence[chosen] += weight * found.influence * len(features) / n
        return {"fid_infinity": value, "fid_infinity_error": standard_error(influence)}

    def caution(self, sizes: Sizes) -> str | None:
        enough = round(sizes.features / SMALLEST)
        if sizes.samples >= enough and sizes.real >= sizes.features:
            return None
        return (
            f"FID for N to infinity is not reliable: {sizes} for {sizes.features:,} features; take at least {enough:,} "
            f"samples and {sizes.features:,} reference images"
        )
