"""Classifier-free guidance, Ho & Salimans 2022."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, eps^ = (1 + w) eps(x, t, c) - w eps(x, t), Eq. 6, in any parameterization.

    w = 0 is the conditional model, w = -1 the unconditional one. The other common convention,
    eps(x, t) + s (eps(x, t, c) - eps(x, t)), has s = 1 + w.

    Args:
        scale: w.
        interval: first and last time in 1..T at which to guide (Kynkaanniemi et al. 2024); at other times the
            conditional model is used. None to guide at all times.
    Raises:
        ValueError: the scale is not finite, or the interval is invalid.
    """

    scale: float = 0.0
    interval: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance must be a finite number, got {self.scale}")
        if self.interval is not None and (len(self.interval) != 2 or not self.interval[0] <= self.interval[1]):
            raise ValueError(
                f"guidance_interval must be the first and last time to guide at, such as [100,800], "
                f"got {list(self.interval)}"
            )

    def at(self, t: Tensor) -> Tensor | None:
        """w at times t in [1, T], shape (B,); None if it is 0 at all of them."""
        if self.scale == 0:
            return None
        if self.interval is None:
            return torch.full_like(t, self.scale, dtype=torch.float64)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(inside, self.scale, 0.0).double() if inside.any() else None


CONDITIONAL = Guidance()
"""No guidance: the conditional model."""


@dataclass(frozen=True)
class Given:
    """Guided output of a conditional model for given classes.

    Guidance evaluates the network on both inputs in one batch. A learned variance is the conditional model's.

    Attributes:
        output: (x_t, t, label) -> the network's output.
        label: class of each image in a batch, int64, shape (B,).
        classes: the label that means no class.
        guidance: strength of the guidance towards the classes.
    """

    output: Callable[[Tensor, Tensor, Tensor], Tensor]
    label: Tensor
    classes: int
    guidance: Guidance

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        w = self.guidance.at(t)
        if w is None:
            return self.output(x_t, t, self.label)
        nothing = torch.full_like(self.label, self.classes)
        labels = torch.cat([self.label, nothing])
        t = t.expand(len(x_t))
        conditional, unconditional = self.output(torch.cat([x_t, x_t]), torch.cat([t, t]), labels).chunk(2)
        w = w.to(x_t.dtype).view(-1, 1, 1, 1)
        y, rest = conditional.tensor_split([x_t.shape[1]], dim=1)
        return torch.cat([(1 + w) * y - w * unconditional[:, : x_t.shape[1]], rest], 1)


@dataclass(frozen=True)
class Classes:
    """Requested class of each sample.

    Attributes:
        labels: the class of sample i is labels[i mod L], int64, shape (L,).
        guidance: strength of the guidance towards the class.
    """

    labels: Tensor
    guidance: Guidance = CONDITIONAL

    def of(self, index: Sequence[int] | Tensor) -> Tensor:
        """Classes of the samples with these indices, int64, shape (B,)."""
        return self.labels[torch.as_tensor(index) % len(self.labels)]


def in_proportion(labels: Tensor) -> Tensor:
    """Reorder labels so that every contiguous part has about the proportions of the whole, shape (N,)."""
    n = len(labels)
    # The order of a golden-ratio sequence is a permutation that covers 0..n-1 evenly.
    order = ((torch.arange(n, dtype=torch.float64) * 0.6180339887498949) % 1).argsort()
    return labels.sort().values[order]
