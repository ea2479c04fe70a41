"""Whether samples are closer to the training images than other images of the same distribution are.

With d the distance to the nearest training image, the statistic of Mann & Whitney 1947,

    P = Pr[d(sample) < d(held-out image)] + Pr[d(sample) = d(held-out image)] / 2,

is 1/2 for samples of the distribution of the images, 1 for copies of training images, and near 0 for samples that
resemble no image. Meehan, Chaudhuri & Dasgupta 2020 test for data-copying with it, in each cell of a partition of
space; here space is one cell.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MATERIAL = 0.55
"""P above which it matters. If a share c of the samples were copies and the others faultless, P would be 1/2 + c / 2;
this is c = 10%."""


class Closer(NamedTuple):
    """How often samples are closer.

    Attributes:
        probability: P, in [0, 1].
        error: its standard error, over samples and held-out images.
    """

    probability: float
    error: float

    @property
    def too_often(self) -> bool:
        """Whether P exceeds 1/2 by more than 1.96 errors, and is MATERIAL."""
        return self.probability > max(MATERIAL, 0.5 + 1.96 * self.error)


def verdict(by_features: Closer, by_pixels: Closer) -> str:
    """What P says, in a sentence.

    A copy is close by features and by pixels. Closer by features alone are samples that are more typical than images
    are, closer by pixels alone samples that are smoother.
    """
    too_often = [name for name, each in (("features", by_features), ("pixels", by_pixels)) if each.too_often]
    finding = {
        2: "MEMORISATION: samples repeat training images",
        1: f"no memorisation by both measures, but samples are too close by {' '.join(too_often)}: look at the pairs",
        0: "no sign of memorisation",
    }[len(too_often)]
    return (
        f"{finding}. A sample is closer to the training images than a test image is with probability "
        f"{by_features.probability:.3f} by features and {by_pixels.probability:.3f} by pixels; 0.5 is ideal, and "
        f"{MATERIAL} is as if {2 * MATERIAL - 1:.0%} of the samples were copies."
    )


def closer(samples: Tensor, held_out: Tensor) -> Closer:
    """P and its standard error, after DeLong, DeLong & Clarke-Pearson 1988.

    Args:
        samples: distance of each sample to its nearest training image, or an increasing function of it, shape (N,).
        held_out: the same of images that the model was not trained on, shape (M,).
    Raises:
        ValueError: N or M is below 2.
    """
    if min(len(samples), len(held_out)) < 2:
        raise ValueError(
            f"memorisation needs at least 2 samples and 2 test images, got {len(samples)} and {len(held_out)}"
        )
    farther = 1 - _share_below(samples, held_out)  # of held-out images, for each sample
    nearer = _share_below(held_out, samples)  # of samples, for each held-out image
    variance = farther.var() / len(samples) + nearer.var() / len(held_out)
    return Closer(float(nearer.mean()), float(variance.sqrt()))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Share of the others below each value, equal ones counted half, float64."""
    ordered = others.sort().values
    below, up_to = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (below + up_to).double() / (2 * len(others))
