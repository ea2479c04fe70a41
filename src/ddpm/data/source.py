"""Sources of images. A new source is one class here and one file in conf/data/."""

from abc import ABC, abstractmethod

from ddpm.data.images import Images


class Source(ABC):
    """A training and a test split of images of one shape.

    Args:
        flip: mirror each training image left to right with probability 1/2.
    """

    shape: tuple[int, int, int]
    """(C, H, W)."""

    levels: int = 256
    """K: pixels are grey levels 0..K-1."""

    def __init__(self, flip: bool = False) -> None:
        if not isinstance(flip, bool):
            raise TypeError(f"flip must be true or false, got {flip!r}")
        self.flip = flip

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of labels 0, 1, ...; empty when there are no labels."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to show about how the data were interpreted, where that may surprise."""
        return ()

    def prepare(self) -> None:  # noqa: B027 (most sources have nothing to fetch)
        """Fetch what load needs. One process calls this before all processes load."""

    @abstractmethod
    def load(self, split: str) -> Images:
        """The images of "train" or "test"; any other split raises ValueError."""


def check_split(split: str) -> None:
    """Raise ValueError for a split other than "train" and "test"."""
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
