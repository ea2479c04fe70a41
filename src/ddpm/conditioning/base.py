"""What the network is told about an image besides its noisy version."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Conditioning(ABC):
    """Which labels a network is trained with."""

    @abstractmethod
    def classes(self, names: Sequence[str]) -> int:
        """How many classes the network can be given, for data with these; 0 if it is unconditional.

        Raises:
            ValueError: the data have no classes, but some are needed.
        """

    @abstractmethod
    def labels(self, label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
        """What the network is told in a training step, int64, shape (B,).

        Args:
            label: of each image, int64, shape (B,).
            classes: number of classes, which also stands for none.
            generator: of what is random in it.
        """
