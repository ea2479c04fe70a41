"""Super-resolution of a smaller image."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ddpm.operator.base import LinearOperator


class SuperResolution(LinearOperator):
    """y: means over blocks of factor x factor pixels.

    Args:
        factor: at least 2; must divide both sides of the image.
    """

    def __init__(self, factor: int = 4) -> None:
        if factor < 2:
            raise ValueError(f"operator.factor must be at least 2, got {factor}")
        self.factor = factor

    def check(self, shape: Sequence[int]) -> None:
        if shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(
                f"operator.factor={self.factor} does not divide images of {shape[1]} x {shape[2]}; choose one that does"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)
