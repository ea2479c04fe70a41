"""FID, Inception Score, KID, precision and recall, each computed by torch-fidelity from features.

| name | paper | looks at |
|---|---|---|
| fid | Heusel et al. 2017 | mean and covariance of the features |
| is | Salimans et al. 2016 | logits of the samples alone |
| kid | Binkowski et al. 2018 | features, cubic kernel, unbiased |
| prc | Kynkaanniemi et al. 2019 | features, nearest neighbours |
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

METRICS = ("fid", "is", "kid", "prc")
NAMES = {
    "frechet_inception_distance": "fid",
    "inception_score_mean": "is_mean",
    "inception_score_std": "is_std",
    "kernel_inception_distance_mean": "kid_mean",
    "kernel_inception_distance_std": "kid_std",
    "precision": "precision",
    "recall": "recall",
}


def fidelity(
    samples: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | None,
    metrics: Sequence[str] = METRICS,
    *,
    isc_splits: int = DEFAULTS["isc_splits"],
    kid_subsets: int = DEFAULTS["kid_subsets"],
    kid_subset_size: int = DEFAULTS["kid_subset_size"],
    prc_neighborhood: int = DEFAULTS["prc_neighborhood"],
) -> dict[str, Any]:
    """What torch-fidelity's `calculate_metrics` reports for the same images in the same order.

    Args:
        samples: `features` (N, dim) and `logits` (N, classes), as from `sample_features` or `features_of`.
        reference: the same of real images; None if only `is` is asked for.
        metrics: of fid, is, kid, prc.
        isc_splits, kid_subsets, kid_subset_size, prc_neighborhood: torch-fidelity's options and defaults. The
            subset of KID is made as small as the smaller set, and stated in the result.

    Returns:
        Of fid, is_mean, is_std, kid_mean, kid_std, kid_subset_size, precision, recall those asked for
        (numbers); `unreliable`, a list of those that are of too few images, and `warnings`, sentences that say why.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    if reference is None and set(metrics) != {"is"}:
        raise ValueError("fid, kid and prc compare with real images; give the reference, or ask for is alone")
    fake = _checked(samples["features"], "samples")
    real = fake if reference is None else _checked(reference["features"], "reference images")
    if fake.shape[1] != real.shape[1]:
        raise ValueError(
            f"the samples have {fake.shape[1]} features, the reference {real.shape[1]}; "
            f"use one feature network for both"
        )
    check_sizes(metrics, len(fake), len(real), isc_splits, prc_neighborhood)
    n = min(len(fake), len(real))

    found: dict[str, float] = {}
    result: dict[str, Any] = {}
    if "fid" in metrics:
        # float64 for the mean too, which torch-fidelity leaves in float32: they differ by rounding only
        found |= fid_statistics_to_metric(
            fid_features_to_statistics(fake.double()),
            fid_features_to_statistics(real.double()),
            verbose=False,
        )
    if "is" in metrics:
        found |= isc_features_to_metric(_checked(samples["logits"], "samples"), splits=isc_splits)
    if "kid" in metrics:
        size = min(kid_subset_size, n)
        found |= kid_features_to_metric(fake, real, kid_subsets=kid_subsets, kid_subset_size=size, verbose=False)
        result["kid_subset_size"] = size
    if "prc" in metrics:
        # the same numbers either way; all distances of 50,000 images at once would take 10 GB a matrix
        large = max(len(fake), len(real)) > DEFAULTS["prc_batch_size"]
        found |= prc_features_to_metric(
            fake, real, prc_neighborhood=prc_neighborhood, save_cpu_ram=large, verbose=False
        )
    result |= {NAMES[key]: float(value) for key, value in found.items() if key in NAMES}
    for key, value in result.items():
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}: features too large; check the feature network's weights")
    reasons = unreliable(
        metrics,
        len(fake),
        len(real),
        dim=fake.shape[1],
        classes=samples["logits"].shape[1] if "is" in metrics else 0,
        isc_splits=isc_splits,
        kid_subset_size=kid_subset_size,
        prc_neighborhood=prc_neighborhood,
    )
    return result | {"unreliable": [*reasons], "warnings": [*dict.fromkeys(reasons.values())]}


def unreliable(
    metrics: Sequence[str],
    n: int,
    n_reference: int,
    dim: int,
    classes: int = 0,
    *,
    isc_splits: int = DEFAULTS["isc_splits"],
    kid_subset_size: int = DEFAULTS["kid_subset_size"],
    prc_neighborhood: int = DEFAULTS["prc_neighborhood"],
) -> dict[str, str]:
    """The values that are of too few images, by their names in the result of `fidelity`, with a sentence that says why.

    | metric | takes at least | because |
    |---|---|---|
    | fid | `dim` samples and real images | the covariance of fewer is singular |
    | is | `classes` samples in each split | IS of m samples is at most m, whatever they show |
    | kid | more samples and real images than a subset holds | else all subsets are one, whose spread says nothing |
    | prc | 100 samples and real images for each neighbour | a neighbourhood is then at most 1% of its set |

    Args:
        metrics: of fid, is, kid, prc.
        n: number of samples.
        n_reference: number of real images.
        dim: number of features.
        classes: number of logits, for `is`.
        isc_splits, kid_subset_size, prc_neighborhood: as in `fidelity`.
    """
    both, fewest = f"{n:,} samples and {n_reference:,} reference images", min(n, n_reference)
    found = {}
    if "fid" in metrics and fewest < dim:
        found["fid"] = f"FID is not reliable: {both} for {dim:,} features; take at least {dim:,} of each"
    if "is" in metrics and n < isc_splits * classes:
        found["is_mean"] = found["is_std"] = (
            f"IS is not reliable: {n:,} samples in {isc_splits} splits for {classes:,} classes; "
            f"take at least {isc_splits * classes:,}"
        )
    if "kid" in metrics and fewest <= kid_subset_size:
        found["kid_mean"] = found["kid_std"] = (
            f"KID is not reliable: {both} for subsets of {kid_subset_size:,}; "
            f"take at least {kid_subset_size + 1:,} of each"
        )
    if "prc" in metrics and fewest < 100 * prc_neighborhood:
        found["precision"] = found["recall"] = (
            f"precision and recall are not reliable: {both} for neighbourhoods of {prc_neighborhood}; "
            f"take at least {100 * prc_neighborhood:,} of each"
        )
    return found


def check_sizes(
    metrics: Sequence[str],
    n: int,
    n_reference: int,
    isc_splits: int = DEFAULTS["isc_splits"],
    prc_neighborhood: int = DEFAULTS["prc_neighborhood"],
) -> None:
    """Raises ValueError when n samples, or the images that they are compared with, are too few for a metric."""
    # fid, kid: a variance; is: one sample a split; prc: the k-th neighbour other than the sample itself
    least = {"fid": 2, "is": isc_splits, "kid": 2, "prc": prc_neighborhood + 1}
    for name in metrics:
        have = n if name == "is" else min(n, n_reference)
        if have < least[name]:
            raise ValueError(f"{name} needs at least {least[name]} images, got {have}; take more, or leave out {name}")


def _checked(features: Tensor, whose: str) -> Tensor:
    """Finite float32 features on the CPU, as torch-fidelity wants them."""
    features = features.detach().float().cpu()
    if not features.isfinite().all():
        raise ValueError(f"the features of the {whose} hold NaN or infinity; check the feature network's weights")
    return features
