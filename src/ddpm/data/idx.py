"""Data sets in IDX files (LeCun et al. 1998): two of images and two of labels, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ddpm.data.torchvision_source import TorchvisionSource


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes: two zeros, type 8, rank d, then d big-endian sizes, then the data.

    Raises:
        ValueError: the file is not a complete IDX file of bytes.
    """
    content = path.read_bytes()
    if path.suffix == ".gz" and content:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(str(error)) from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("it is not an IDX file of bytes" if content else "it is empty")
    rank = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i]) for i in range(rank)]
    data = bytearray(content[4 + 4 * rank :])
    if not data or len(data) != math.prod(sizes):
        raise ValueError(f"it holds {len(data)} bytes instead of {' x '.join(map(str, sizes))}")
    return torch.frombuffer(data, dtype=torch.uint8).view(sizes)


class IDXSource(TorchvisionSource):
    """A data set in torchvision's MNIST layout, with plain or gzipped files."""

    def _places(self) -> list[tuple[Path, str]]:
        """Folders to search in order, each with the remedy for a damaged file there."""
        return [(self.root / self.dataset.__name__ / "raw", f"remove it, and {self._remedy()}")]

    def _read(self, split: str) -> tuple[Tensor, Tensor] | None:
        prefix = "train" if split == "train" else "t10k"
        for folder, remedy in self._places():
            images, labels = (
                [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
                for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
            )
            if images and labels:
                return self._checked(images[0], labels[0], remedy)
        return None

    def _checked(self, images: Path, labels: Path, remedy: str) -> tuple[Tensor, Tensor]:
        found = []
        for path in (images, labels):
            try:
                found.append(read_idx(path))
                self._check(*found)
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}); {remedy}") from None
        return found[0], found[1]

    def _check(self, pixels: Tensor, labels: Tensor | None = None) -> None:
        """Reject arrays that do not fit the data set; the error is about the file read last."""
        if pixels.shape[1:] != self.shape[1:]:
            raise ValueError(f"its images have shape {tuple(pixels.shape[1:])}, not {self.shape[1:]}")
        if labels is not None and labels.shape != pixels.shape[:1]:
            raise ValueError(f"its labels have shape {tuple(labels.shape)}, for {len(pixels)} images")
        if labels is not None and labels.max() >= len(self.classes):
            raise ValueError(f"it holds label {int(labels.max())}, but there are {len(self.classes)} classes")
