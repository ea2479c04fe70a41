"""How well samples are of the classes that were asked for."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddpm.metrics.fidelity import fidelity


def accuracy(samples: Mapping[str, Tensor], labels: Tensor) -> float:
    """Share of samples that the classifier gives the class that was asked for, in [0, 1].

    Args:
        samples: `logits` (N, classes) of a classifier of the data.
        labels: int64, shape (N,).
    """
    return float((samples["logits"].argmax(1) == labels.to(samples["logits"].device)).double().mean())


def fid_by_class(
    samples: Mapping[str, Tensor], labels: Tensor, reference: Mapping[str, Tensor], reference_labels: Tensor
) -> dict[int, float]:
    """FID of the samples of each class against the real images of that class.

    Args:
        samples: `features` (N, dim).
        labels: of the samples, int64, shape (N,).
        reference: the same of real images.
        reference_labels: of these.
    Returns:
        For each class of which there are two samples and two real images or more. FID of few samples is biased
        upwards, so that these compare with each other, not with FID over all classes.
    """
    found: dict[int, Any] = {}
    for label in sorted(set(labels.tolist())):
        mine = {key: value[labels == label] for key, value in samples.items()}
        real = {key: value[reference_labels == label] for key, value in reference.items()}
        if min(len(mine["features"]), len(real["features"])) > 1:
            found[label] = fidelity(mine, real, ["fid"])["fid"]
    return found
