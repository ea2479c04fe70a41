"""CIFAR-10: 60,000 colour images, 32x32 pixels (Krizhevsky 2009)."""

from torchvision import datasets

from ddpm.data.cifar import CIFAR


class CIFAR10(CIFAR):
    """50,000 training and 10,000 test images, shape (3, 32, 32), 256 levels, 10 classes.

    Args:
        root: the folder that holds cifar-10-batches-py.
        flip: mirror training images at random, as Ho et al. 2020 do (Appendix B).
    """

    shape = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    dataset = datasets.CIFAR10
    remedy = "put cifar-10-python.tar.gz (or its folder cifar-10-batches-py) under {root}"
