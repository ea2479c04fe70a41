"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels (Xiao et al. 2017)."""

from pathlib import Path

from torchvision import datasets

from ddpm.data.idx import IDXSource

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist."""


class FashionMNIST(IDXSource):
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

    def _places(self) -> list[tuple[Path, str]]:
        return [*super()._places(), (DEBIAN, "apt-get install --reinstall dataset-fashion-mnist")]
