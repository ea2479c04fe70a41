"""Deblurring of images blurred by motion."""

import math

import torch

from ddpm.operator.blur import Blur


class MotionBlur(Blur):
    """Convolution with a line.

    Args:
        length: length of the line in pixels, >= 2.
        angle: angle to the horizontal, in degrees, anticlockwise.
    """

    def __init__(self, length: int = 7, angle: float = 30.0) -> None:
        if length < 2:
            raise ValueError(f"operator.length must be at least 2, got {length}")
        if not math.isfinite(angle):
            raise ValueError(f"operator.angle must be a finite number of degrees, got {angle}")
        radius = math.ceil((length - 1) / 2)
        kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
        direction = (-math.sin(math.radians(angle)), math.cos(math.radians(angle)))
        for at in torch.linspace(-(length - 1) / 2, (length - 1) / 2, 16 * length, dtype=torch.float64).tolist():
            # Distribute each point of the line over the four pixels around it.
            y, x = (radius + at * each for each in direction)
            top, left = min(int(y), 2 * radius - 1), min(int(x), 2 * radius - 1)
            for i, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    kernel[i, j] += share_y * share_x
        super().__init__(kernel / kernel.sum())
