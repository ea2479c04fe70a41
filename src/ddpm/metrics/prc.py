"""Precision and recall, Kynkaanniemi et al. 2019."""

from collections.abc import Mapping

from torch import Tensor
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.metrics.base import Metric, Row, Sizes


class PrecisionRecall(Metric):
    """Shares of samples within the real images' neighbourhoods, and of real images within the samples', in [0, 1].

    Args:
        neighbourhood: k; a neighbourhood reaches to the k-th nearest image of its set. Needs 100 k images: it is then
            at most 1% of the set.
    """

    rows = (Row("precision", "precision"), Row("recall", "recall"))

    def __init__(self, neighbourhood: int = 3) -> None:
        if neighbourhood < 1:
            raise ValueError(f"neighbourhood must be at least 1, got {neighbourhood}; 3 is typical")
        self.neighbourhood = neighbourhood
        self.least = neighbourhood + 1  # the k-th other than the image itself

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        ours, theirs = samples["features"], real["features"]
        # the same numbers either way; all distances of 50,000 images at once would take 10 GB a matrix
        large = max(len(ours), len(theirs)) > DEFAULTS["prc_batch_size"]
        found = prc_features_to_metric(
            ours, theirs, prc_neighborhood=self.neighbourhood, save_cpu_ram=large, verbose=False
        )
        return {name: float(found[name]) for name in ("precision", "recall")}

    def caution(self, sizes: Sizes) -> str | None:
        enough = 100 * self.neighbourhood
        if sizes.fewest >= enough:
            return None
        return (
            f"precision and recall are not reliable: {sizes} for neighbourhoods of {self.neighbourhood}; "
            f"take at least {enough:,} of each"
        )
