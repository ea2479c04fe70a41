"""Values of indexed images, gathered from all processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ddpm.support.finite import finite


class Gathered(Metric):
    """Named values of images, each known by its index.

    `compute` orders by index and keeps one of each, so neither the number of processes, nor the batch size, nor the
    order, nor the padding of a distributed sampler shows. Every process must have been given at least one image.

    Args:
        names: of the values.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.shapes: dict[str, torch.Size] = {}
        for name in (*self.names, "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, values: Mapping[str, Tensor], index: Tensor) -> None:
        """Add a batch: each of the named values, shape (B, ...), all finite, and the images' indices, int64 (B,)."""
        for name in self.names:
            if len(values[name]) != len(index):
                raise ValueError(
                    f"{len(values[name])} values of {name} came with {len(index)} indices; give one for each"
                )
            getattr(self, name).append(finite(values[name], name).to(self.device))
            self.shapes[name] = values[name].shape[1:]
        self.index.append(index.to(self.device))  # type: ignore[operator, union-attr]

    def _wrap_compute(self, compute: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """torchmetrics' own, which makes a scalar of a tensor of one number; here the shapes are kept."""
        wrapped = super()._wrap_compute(compute)
        return lambda: {name: value.reshape(-1, *self.shapes[name]) for name, value in wrapped().items()}

    def compute(self) -> dict[str, Tensor]:
        """Each of the named values, shape (N, ...), of the N distinct indices in their order."""
        index = dim_zero_cat(self.index)  # type: ignore[arg-type]
        order = index.argsort(stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        keep = order[first]
        return {name: dim_zero_cat(getattr(self, name))[keep] for name in self.names}
