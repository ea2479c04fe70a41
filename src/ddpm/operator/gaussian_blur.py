"""Deblurring of out-of-focus images."""

import math

import torch

from ddpm.operator.blur import Blur


class GaussianBlur(Blur):
    """Convolution with a Gaussian, truncated at three standard deviations.

    Args:
        width: standard deviation in pixels, > 0.
    """

    def __init__(self, width: float = 1.5) -> None:
        if not 0 < width < math.inf:
            raise ValueError(f"operator.width must be above 0, got {width}")
        radius = math.ceil(3 * width)
        along = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / width) ** 2)
        along = along / along.sum()
        super().__init__(along[:, None] * along)
