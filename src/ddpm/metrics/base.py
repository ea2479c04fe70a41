"""What every metric of samples states and computes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor


class Row(NamedTuple):
    """A line of a printed table.

    Attributes:
        value: name of the value.
        label: what to print for it.
        spread: name of its standard error or deviation, if it has one.
        n: name of the number of images behind it.
    """

    value: str
    label: str
    spread: str | None = None
    n: str = "n"


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples and real images, and of the features and logits of each."""

    samples: int
    real: int
    features: int
    logits: int = 0

    @property
    def fewest(self) -> int:
        """Size of the smaller set."""
        return min(self.samples, self.real)

    def __str__(self) -> str:
        return f"{self.samples:,} samples and {self.real:,} reference images"


class Metric(ABC):
    """A measure of samples, computed from all of them at once."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    """What it looks at: any of `features` (N, dim) and `logits` (N, classes) of the feature network, float32, and
    `pixels` (N, C, H, W), uint8 in 0..255."""
    compares: ClassVar[bool] = True
    """Whether it compares the samples with real images."""
    distance: ClassVar[str | None] = None
    """Name of a value that is a distance to the real images; its floor, that of other real images, is reported."""
    rows: ClassVar[tuple[Row, ...]]
    """What to print. Every value and spread named here is marked when it is unreliable."""
    least: int = 2
    """Fewest samples, and real images if it compares, from which it can be computed."""

    @abstractmethod
    def __call__(self, samples: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Values by name, those of `rows` among them.

        Args:
            samples: a tensor for each of `needs`, on the CPU, all finite.
            real: the same of the training images; empty unless `compares`.
        """

    def caution(self, sizes: Sizes) -> str | None:
        """Why values from so few images are unreliable; None if they are not."""
        return None
