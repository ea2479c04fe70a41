"""Inception Score, Salimans et al. 2016."""

from collections.abc import Mapping

from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from ddpm.metrics.base import Metric, Row, Sizes


class InceptionScore(Metric):
    """exp E KL(p(y|x) || p(y)), from the logits of the samples alone: mean and standard deviation over splits.

    Args:
        splits: number of splits. Each needs at least as many samples as classes: the score of m samples is at most m,
            whatever they show.
    """

    needs = frozenset({"logits"})
    compares = False
    rows = (Row("is_mean", "IS", "is_std"),)

    def __init__(self, splits: int = 10) -> None:
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}; 10 is typical")
        self.least = self.splits = splits

    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, float]:
        found = isc_features_to_metric(samples["logits"], splits=self.splits)
        return {"is_mean": found["inception_score_mean"], "is_std": found["inception_score_std"]}

    def caution(self, sizes: Sizes) -> str | None:
        enough = self.splits * sizes.logits
        if sizes.samples >= enough:
            return None
        return (
            f"IS is not reliable: {sizes.samples:,} samples in {self.splits} splits for {sizes.logits:,} classes; "
            f"take at least {enough:,}"
        )
