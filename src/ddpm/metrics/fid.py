"""Frechet Inception Distance, Heusel et al. 2017."""

from collections.abc import Mapping

from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ddpm.metrics.base import Metric, Row, Sizes


class FID(Metric):
    """||m - m'||^2 + tr(C + C' - 2 (C C')^{1/2}) of the means and covariances of the features, in float64.

    Needs at least as many samples and real images as features: the covariance of fewer is singular.
    """

    distance = "fid"
    rows = (Row("fid", "FID"),)

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        # float64 for the mean too, which torch-fidelity leaves in float32: they differ by rounding only
        statistics = (fid_features_to_statistics(images["features"].double()) for images in (samples, real))
        return {"fid": float(*fid_statistics_to_metric(*statistics, verbose=False).values())}

    def caution(self, sizes: Sizes) -> str | None:
        if sizes.fewest >= sizes.features:
            return None
        return f"FID is not reliable: {sizes} for {sizes.features:,} features; take at least {sizes.features:,} of each"
