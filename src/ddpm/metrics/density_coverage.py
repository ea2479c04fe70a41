"""Density and coverage, Naeem et al. 2020."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ddpm.metrics.base import Metric, Row, Sizes
from ddpm.metrics.neighbours import blocks, nearest, squared_distances


class DensityCoverage(Metric):
    """Neighbourhoods of real images that samples lie in, and share of real images with a sample in theirs.

    density = sum_ij 1[||x_i - y_j|| < r_k(x_i)] / (k N), of mean 1 for samples of the real distribution, may exceed 1;
    coverage = sum_i 1[min_j ||x_i - y_j|| < r_k(x_i)] / M, in [0, 1], of N samples y and M real images x. r_k(x) is the
    distance of x to its k-th nearest other real image.

    Args:
        neighbourhood: k. Needs 100 k images, as precision and recall do. Coverage grows with N / M: compare values of
            the same numbers of images.
    """

    rows = (Row("density", "density"), Row("coverage", "coverage"))

    def __init__(self, neighbourhood: int = 5) -> None:
        if neighbourhood < 1:
            raise ValueError(f"neighbourhood must be at least 1, got {neighbourhood}; 5 is typical")
        self.neighbourhood = neighbourhood
        self.least = neighbourhood + 1  # the k-th other than the image itself

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        ours, theirs = samples["features"], real["features"]
        radii = nearest(theirs, blocks(theirs), self.neighbourhood + 1)[0][:, -1]  # the first is the image itself
        radii *= 1 - 1e-9  # a sample that equals a real image is as far as that image, but for rounding: not inside
        inside, covered = 0, torch.zeros(len(theirs), dtype=torch.bool)
        for block in blocks(ours, len(theirs)):
            within = squared_distances(block, theirs) < radii
            inside += int(within.sum())
            covered |= within.any(0)
        return {
            "density": inside / (self.neighbourhood * len(ours)),
            "coverage": float(covered.double().mean()),
        }

    def caution(self, sizes: Sizes) -> str | None:
        enough = 100 * self.neighbourhood
        if sizes.fewest >= enough:
            return None
        return (
            f"density and coverage are not reliable: {sizes} for neighbourhoods of {self.neighbourhood}; "
            f"take at least {enough:,} of each"
        )
