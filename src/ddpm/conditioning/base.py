"""Conditioning: what the network receives besides the noisy image and the time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Conditioning(ABC):
    """The labels that a network is trained with."""

    @abstractmethod
    def classes(self, names: Sequence[str]) -> int:
        """Number of classes of the network, for data with classes of these names; 0 if it is unconditional.

        Raises:
            ValueError: classes are needed, but the data has none.
        """

    @abstractmethod
    def labels(self, label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
        """Labels for the network in a training step, int64, shape (B,).

        Args:
            label: class of each image, int64, shape (B,).
            classes: number of classes, which is also the label for no class.
            generator: source of any randomness.
        """
