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
        (numbers), and `warnings`, a list of sentences, empty if nothing is to be said.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    if reference is None and set(metrics) != {"is"}:
        raise ValueError("fid, kid and prc compare with real images; give the reference, or ask for 'metrics=[is]'")
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
    warnings: list[str] = []
    if "fid" in metrics:
        # float64 for the mean too, which torch-fidelity leaves in float32: they differ by rounding only
        found |= fid_statistics_to_metric(
            fid_features_to_statistics(fake.double()),
            fid_features_to_statistics(real.double()),
            verbose=False,
        )
        if n < fake.shape[1]:
            warnings.append(
                f"FID is not reliable: {len(fake)} samples and {len(real)} reference images for "
                f"{fake.shape[1]} features; take at least {fake.shape[1]} of each"
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
    return result | {"warnings": warnings}


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
