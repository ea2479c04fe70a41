"""What the sets that torchvision knows have in common: find the files, or download them, or say how to."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm.data.images import InMemory
from ddpm.data.source import Source, check_split


@contextlib.contextmanager
def _short_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens its addresses without a timeout; a firewall that drops packets would hang it
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class TorchvisionSource(Source):
    """A set in torchvision's own layout under root, downloaded there when it is missing.

    Args:
        root: the folder that holds (or will hold) the set.
        flip: mirror training images at random.
    """

    dataset: ClassVar[Any]
    """The torchvision class; called as dataset(root, train=..., download=...)."""

    remedy: ClassVar[str]
    """Ways to provide the files by hand; {root} stands for the folder."""

    def __init__(self, root: str = "data", flip: bool = False) -> None:
        super().__init__(flip)
        self.root = Path(root).expanduser()

    def prepare(self) -> None:
        """Download both splits if they are missing; ValueError with the remedies when they cannot be had."""
        if not isinstance(self._found("test"), Exception):
            return
        found = self._in_root(train=False, download=True)
        if isinstance(found, Exception):
            cause = " ".join(str(found).split())
            raise ValueError(
                f"{self._missing()} and could not be downloaded; {self._remedy()},"
                f" or run once with a network to download it (the download said: {cause})"
            )

    def load(self, split: str) -> InMemory:
        """All images of the split in memory; ValueError with the remedies when they are not there."""
        check_split(split)
        found = self._found(split)
        if isinstance(found, Exception):
            raise ValueError(f"{self._missing()}; {self._remedy()}, or give data_root=FOLDER to download it there")
        pixels, labels = found
        return InMemory(pixels.view(-1, *self.shape), labels)

    def _missing(self) -> str:
        return f"{type(self).__name__} is not in {self.root}"

    def _remedy(self) -> str:
        return self.remedy.format(root=self.root)

    def _found(self, split: str) -> tuple[Tensor, Tensor] | Exception:
        """The split from where it lies, or the reason why it is not there."""
        found = self._in_root(split == "train", download=False)
        if isinstance(found, Exception):
            found = self._elsewhere(split) or found
        return found

    def _in_root(self, train: bool, download: bool) -> tuple[Tensor, Tensor] | Exception:
        """(pixels, labels), or the reason why there are none."""
        try:
            with _short_timeout(15):
                data = self.dataset(str(self.root), train=train, download=download)
        except (RuntimeError, OSError) as error:
            return error
        pixels = torch.as_tensor(data.data)  # (N, H, W), or (N, H, W, C) for colour
        if pixels.ndim == 4:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        return pixels, torch.as_tensor(data.targets)

    def _elsewhere(self, split: str) -> tuple[Tensor, Tensor] | None:
        """The split from a folder other than root, or None."""
        return None
