"""No conditioning."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.conditioning.base import Conditioning


class Unconditional(Conditioning):
    """The network receives no labels."""

    def classes(self, names: Sequence[str]) -> int:
        return 0

    def labels(self, label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
        return label
