"""Values of several metrics of the same samples."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from ddpm.metrics.base import Metric, Row, Sizes


def scores(
    metrics: Mapping[str, Metric], samples: Mapping[str, Tensor], real: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """All values of the metrics, by name.

    With the same images in the same order, those of fid, is, kid and prc equal torch-fidelity's `calculate_metrics`.

    Args:
        metrics: by name.
        samples: `features`, `logits` and `pixels` (N, ...), as far as a metric needs them.
        real: the same of real images; None if no metric compares with them.
    Raises:
        ValueError: there are too few images, or a value is not finite.
    """
    if comparing := [name for name, metric in metrics.items() if metric.compares]:
        if real is None:
            raise ValueError(f"{', '.join(comparing)} compare with real images; give them, or leave these metrics out")
        dims = [each["features"].shape[1] for each in (samples, real) if "features" in each]
        if len({*dims}) > 1:
            raise ValueError(
                f"the samples have {dims[0]} features, the reference {dims[1]}; use one feature network for both"
            )
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        mine = _checked(samples, metric, "samples")
        theirs = _checked(real, metric, "reference images") if metric.compares and real else {}
        sizes = [len(next(iter(each.values()))) for each in (mine, theirs) if each]
        _check_size(name, metric, min(sizes))
        found |= metric(mine, theirs)
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}: features too large; check the feature network's weights")
    return found


def check_sizes(metrics: Mapping[str, Metric], sizes: Sizes) -> None:
    """Raises ValueError if there are too few samples, or real images to compare them with, for a metric."""
    for name, metric in metrics.items():
        _check_size(name, metric, sizes.fewest if metric.compares else sizes.samples)


def unreliable(metrics: Iterable[Metric], sizes: Sizes) -> dict[str, str]:
    """Names of the values that come from too few images, each with a sentence that says why."""
    cautions = [(metric, metric.caution(sizes)) for metric in metrics]
    return {
        name: caution
        for metric, caution in cautions
        if caution is not None
        for row in metric.rows
        for name in (row.value, row.spread)
        if name is not None
    }


def rows(metrics: Iterable[Metric]) -> list[Row]:
    """What to print of the metrics; below each distance its floor."""
    found: list[Row] = []
    for metric in metrics:
        found += metric.rows
        if name := metric.distance:
            found.append(Row(f"{name}_floor", "  of real test images (floor)", n=f"{name}_floor_n"))
    return found


def _check_size(name: str, metric: Metric, n: int) -> None:
    if n < metric.least:
        raise ValueError(f"{name} needs at least {metric.least} images, got {n}; take more, or leave out {name}")


def _checked(values: Mapping[str, Tensor], metric: Metric, whose: str) -> dict[str, Tensor]:
    """What the metric needs, on the CPU."""
    found = {}
    for need in sorted(metric.needs):
        value = values[need].detach().cpu()
        if not value.isfinite().all():
            raise ValueError(f"the {need} of the {whose} hold NaN or infinity; check the feature network's weights")
        found[need] = value
    return found
