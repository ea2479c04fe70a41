"""MNIST: 70,000 grey images of handwritten digits, 28x28 pixels (LeCun et al. 1998)."""

from torchvision import datasets

from ddpm.data.idx import IDXSource


class MNIST(IDXSource):
    """60,000 training and 10,000 test images, shape (1, 28, 28), 256 levels, 10 classes.

    Args:
        root: the folder that holds MNIST/raw.
        flip: mirror training images at random; a mirrored digit is rarely a digit.
    """

    shape = (1, 28, 28)
    classes = tuple("0123456789")
    dataset = datasets.MNIST
    remedy = (
        "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz"
        " and t10k-labels-idx1-ubyte.gz under {root}/MNIST/raw"
    )
