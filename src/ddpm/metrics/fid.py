"""Frechet Inception Distance, Heusel et al. 2017."""

from collections.abc import Mapping

from torch import Tensor

from ddpm.metrics.base import Metric, Row, Sizes
from ddpm.metrics.frechet import frechet, reference, standard_error


class FID(Metric):
    """||m - m'||^2 + tr(C + C' - 2 (C C')^{1/2}) of the means and covariances of the features, in float64.

    `fid_error` is its standard error over samples, the real images being fixed, by the infinitesimal jackknife
    (`metrics.frechet`). It leaves out the bias of FID, which is too large by about c / N: compare FIDs of the same N.

    Needs at least as many samples and real images as features: the covariance of fewer is singular.
    """

    distance = "fid"
    rows = (Row("fid", "FID", "fid_error"),)

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        found = frechet(samples["features"], reference(real["features"]))
        return {"fid": found.distance, "fid_error": standard_error(found.influence)}

    def caution(self, sizes: Sizes) -> str | None:
        if sizes.fewest >= sizes.features:
            return None
        return f"FID is not reliable: {sizes} for {sizes.features:,} features; take at least {sizes.features:,} of each"
