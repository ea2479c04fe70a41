"""Colourisation of a grey image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.operator.base import LinearOperator

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, ITU-R BT.601."""


class Colourise(LinearOperator):
    """y: the luma of each pixel, shape (B, 1, H, W)."""

    def check(self, shape: Sequence[int]) -> None:
        if shape[0] != 3:
            raise ValueError(f"operator=colourise needs images with 3 channels, got {shape[0]}")

    def __call__(self, x: Tensor) -> Tensor:
        return (x * torch.tensor(LUMA).to(x).view(3, 1, 1)).sum(1, keepdim=True)
