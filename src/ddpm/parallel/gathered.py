"""Values of indexed images, gathered from all processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ddpm.support.finite import finite


class Gathered(Metric):
    """Named values per image, gathered by image index.

    `compute` sorts by index and drops duplicates, so the result does not depend on the number of processes, the batch
    size, the order, or the padding of a distributed sampler. Every process must receive at least one image.

    Args:
        names: names of the values.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.shapes: dict[str, torch.Size] = {}
        for name in (*self.names, "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, values: Mapping[str, Tensor], index: Tensor) -> None:
        """Add a batch: finite values of shape (B, ...) for each name, and the image indices, int64 (B,)."""
        for name in self.names:
            if len(values[name]) != len(index):
                raise ValueError(
                    f"got {len(values[name])} values of {name} for {len(index)} indices; give one value per index"
                )
            getattr(self, name).append(finite(values[name], name).to(self.device))
            self.shapes[name] = values[name].shape[1:]
        self.index.append(index.to(self.device))  # type: ignore[operator, union-attr]

    def _wrap_compute(self, compute: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Keep the shapes; torchmetrics' own version turns one-element tensors into scalars."""
        wrapped = super()._wrap_compute(compute)
        return lambda: {name: value.reshape(-1, *self.shapes[name]) for name, value in wrapped().items()}

    def compute(self) -> dict[str, Tensor]:
        """Each of the named values, shape (N, ...), for the N distinct indices in increasing order."""
        index = dim_zero_cat(self.index)  # type: ignore[arg-type]
        order = index.argsort(stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        keep = order[first]
        return {name: dim_zero_cat(getattr(self, name))[keep] for name in self.names}
