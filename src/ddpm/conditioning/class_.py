"""Class labels, Ho & Salimans 2022."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.conditioning.base import Conditioning


class ClassLabels(Conditioning):
    """Class labels with dropout, so that one network is both the conditional and the unconditional model.

    Args:
        dropout: probability of dropping the label, in [0, 1]; Ho & Salimans use 0.1 and 0.2.
    """

    def __init__(self, dropout: float = 0.1) -> None:
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}; 0.1 is typical")
        self.dropout = dropout

    def classes(self, names: Sequence[str]) -> int:
        if not names:
            raise ValueError(
                "conditioning=class needs data with classes, such as subfolders of an image folder, but this data has "
                "none; choose conditioning=none"
            )
        return len(names)

    def labels(self, label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
        left_out = torch.rand(label.shape, generator=generator, device=label.device) < self.dropout
        return torch.where(left_out, classes, label)
