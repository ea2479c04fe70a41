"""Base of torchvision's data sets: find the files, download them, or say how to get them."""

import contextlib
import socket
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ddpm.data.images import InMemory
from ddpm.data.source import Source, check_split


@contextlib.contextmanager
def _short_timeout(seconds: float) -> Iterator[None]:
    # torchvision sets no timeout; a firewall that drops packets would hang it
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class TorchvisionSource(Source):
    """A data set in torchvision's layout under root, downloaded if it is missing.

    Args:
        root: the folder that holds (or will hold) the data set.
        flip: mirror training images at random.
    """

    dataset: ClassVar[Any]
    """The torchvision class; called as dataset(root, train=..., download=...)."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """Ways to provide the files by hand; {root} stands for the folder."""

    def __init__(self, root: str = "data", flip: bool = False) -> None:
        super().__init__(flip)
        self.root = Path(root).expanduser()

    def prepare(self) -> None:
        """Download both splits if they are missing or damaged; ValueError with remedies if that fails."""
        found = self._found("test")
        failure = None if isinstance(found, tuple) else self._download()
        if failure is not None and isinstance(found, ValueError):
            raise found
        if failure is not None:
            cause = " ".join(str(failure).split())
            raise ValueError(
                f"{self._missing()} and could not be downloaded; {self._remedy()},"
                f" or run once with network access to download it (the download failed: {cause})"
            )

    def load(self, split: str) -> InMemory:
        """All images of the split in memory; ValueError with remedies if files are missing or damaged."""
        check_split(split)
        found = self._found(split)
        if found is None:
            raise ValueError(f"{self._missing()}; {self._remedy()}, or give data_root=FOLDER to download it there")
        if isinstance(found, ValueError):
            raise found
        pixels, labels = found
        return InMemory(pixels.view(-1, *self.shape), labels)

    def _missing(self) -> str:
        return f"{type(self).__name__} is not in {self.root}"

    def _remedy(self) -> str:
        return self.remedy.format(root=self.root)

    def _download(self) -> Exception | None:
        """The error if the download failed; torchvision raises errors of all kinds for files that it cannot read."""
        try:
            with _short_timeout(15):
                self.dataset(str(self.root), train=False, download=True)
        except Exception as error:
            return error
        return None

    def _found(self, split: str) -> tuple[Tensor, Tensor] | ValueError | None:
        """Images and labels; an error naming a damaged file and the remedy; or None if a file is missing."""
        try:
            return self._read(split)
        except ValueError as error:
            return ValueError(str(error))  # without the errors that led to it

    @abstractmethod
    def _read(self, split: str) -> tuple[Tensor, Tensor] | None:
        """uint8 images, (N, C, H, W) or (N, H, W), and labels, (N,); None if a file is missing.

        Raises:
            ValueError: a file is damaged; names it and the remedy.
        """
