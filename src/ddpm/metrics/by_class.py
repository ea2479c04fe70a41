"""How well samples match the classes they were drawn for."""

from collections.abc import Mapping

from torch import Tensor

from ddpm.metrics.fid import FID
from ddpm.metrics.scores import scores


def accuracy(samples: Mapping[str, Tensor], labels: Tensor) -> float:
    """Share of samples that the classifier assigns to their requested class, in [0, 1].

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
        labels: requested classes, int64, shape (N,).
        reference: the same of real images.
        reference_labels: their classes.
    Returns:
        For each class with at least two samples and two real images. FID of few samples is biased upwards: compare
        these with each other, not with FID over all classes.
    """
    found: dict[int, float] = {}
    for label in sorted(set(labels.tolist())):
        mine = {key: value[labels == label] for key, value in samples.items()}
        real = {key: value[reference_labels == label] for key, value in reference.items()}
        if min(len(mine["features"]), len(real["features"])) > 1:
            found[label] = scores({"fid": FID()}, mine, real)["fid"]
    return found
