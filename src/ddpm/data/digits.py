"""Digits: 1797 handwritten digits of 8x8 pixels, bundled with scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from ddpm.data.images import InMemory
from ddpm.data.source import Source, check_split


class Digits(Source):
    """The optical digits of Alpaydin and Kaynak 1998: shape (1, 8, 8), 17 grey levels.

    The split is fixed: 1437 training and 360 test images, drawn once without stratification.

    Args:
        flip: mirror training images at random; a mirrored digit is rarely a digit.
    """

    shape = (1, 8, 8)
    levels = 17
    classes = tuple("0123456789")

    def load(self, split: str) -> InMemory:
        """1437 ("train") or 360 ("test") images with levels 0..16."""
        check_split(split)
        images, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(images))
        chosen = np.sort(order[360:] if split == "train" else order[:360])
        pixels = torch.from_numpy(images[chosen].astype(np.uint8)).view(-1, *self.shape)
        return InMemory(pixels, torch.from_numpy(labels[chosen]))
