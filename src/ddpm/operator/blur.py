"""Convolution of every channel with the same kernel, with reflection padding."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ddpm.operator.base import LinearOperator


class Blur(LinearOperator):
    """y = k * x.

    Args:
        kernel: k, with odd K and sum 1, shape (K, K).
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = kernel

    def check(self, shape: Sequence[int]) -> None:
        if len(self.kernel) // 2 >= min(shape[1:]):
            raise ValueError(
                f"the blur kernel of {len(self.kernel)} pixels is too large for images of {shape[1]} x {shape[2]}; "
                f"choose a smaller blur"
            )

    def __call__(self, x: Tensor) -> Tensor:
        channels, radius = x.shape[1], len(self.kernel) // 2
        kernel = self.kernel.to(x).expand(channels, 1, -1, -1)
        return F.conv2d(F.pad(x, (radius,) * 4, mode="reflect"), kernel, groups=channels)
