"""Classifier-free guidance, Ho & Salimans 2022."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """eps^ = (1 + w) eps(x, t, c) - w eps(x, t), Eq. 6; and the same for every other parameterization.

    w = 0 is the conditional model, w = -1 the unconditional one. The other convention in use, with a scale s for
    eps(x, t) + s (eps(x, t, c) - eps(x, t)), has s = 1 + w.

    Args:
        scale: w.
        interval: the first and the last time, of 1..T, at which to guide (Kynkaanniemi et al. 2024); elsewhere the
            model is the conditional one. None for everywhere.
    Raises:
        ValueError: the scale is no number, or the interval is none.
    """

    scale: float = 0.0
    interval: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance must be a finite number, got {self.scale}")
        if self.interval is not None and (len(self.interval) != 2 or not self.interval[0] <= self.interval[1]):
            raise ValueError(
                f"guidance_interval must be the first and the last time to guide at, such as [100,800], "
                f"got {list(self.interval)}"
            )

    def at(self, t: Tensor) -> Tensor | None:
        """w at times t in [1, T], shape (B,); None where nothing guides."""
        if self.scale == 0:
            return None
        if self.interval is None:
            return torch.full_like(t, self.scale, dtype=torch.float64)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(inside, self.scale, 0.0).double() if inside.any() else None


CONDITIONAL = Guidance()
"""No guidance: the conditional model itself."""


@dataclass(frozen=True)
class Given:
    """The output of a conditional model for images of the given classes, guided.

    The two evaluations that guidance takes are one batch. A learned variance is that of the conditional model.

    Attributes:
        output: (x_t, t, label) -> the network's output.
        label: one for each image of a batch, int64, shape (B,).
        classes: the label that stands for no class.
        guidance: towards the classes.
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
    """Which class each sample is to be of.

    Attributes:
        labels: sample i is of labels[i mod L], int64, shape (L,).
        guidance: towards its class.
    """

    labels: Tensor
    guidance: Guidance = CONDITIONAL

    def of(self, index: Sequence[int] | Tensor) -> Tensor:
        """The classes of samples, int64, shape (B,)."""
        return self.labels[torch.as_tensor(index) % len(self.labels)]


def in_proportion(labels: Tensor) -> Tensor:
    """The same labels in an order of which every stretch has about the proportions of the whole, shape (N,)."""
    n = len(labels)
    # The order of a golden-ratio sequence is a permutation that covers 0..n-1 evenly.
    order = ((torch.arange(n, dtype=torch.float64) * 0.6180339887498949) % 1).argsort()
    return labels.sort().values[order]
