"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels (Xiao et al. 2017)."""

import gzip
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from ddpm.data.torchvision_source import TorchvisionSource

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""


def _read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes: two zeros, type 8, rank d, then d big-endian sizes, then the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes; install its package again")
    rank = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i]) for i in range(rank)]
    return torch.frombuffer(bytearray(content[4 + 4 * rank :]), dtype=torch.uint8).view(sizes)


class FashionMNIST(TorchvisionSource):
    """60,000 training and 10,000 test images, shape (1, 28, 28), 256 levels, 10 classes.

    Looks in root, then in Debian's folder, then downloads into root.

    Args:
        root: the folder that holds FashionMNIST/raw.
        flip: mirror training images at random.
    """

    shape = (1, 28, 28)
    classes = tuple(datasets.FashionMNIST.classes)
    dataset = datasets.FashionMNIST
    remedy = (
        "apt-get install dataset-fashion-mnist,"
        " or put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz"
        " and t10k-labels-idx1-ubyte.gz under {root}/FashionMNIST/raw"
    )

    def _elsewhere(self, split: str) -> tuple[Tensor, Tensor] | None:
        prefix = "train" if split == "train" else "t10k"
        pixels, labels = (DEBIAN / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        if not (pixels.is_file() and labels.is_file()):
            return None
        return _read_idx(pixels), _read_idx(labels)
