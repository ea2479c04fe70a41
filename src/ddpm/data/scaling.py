"""Conversion between grey levels and real numbers, without losing a level.

Pixels are grey levels 0..K-1 (uint8); the network sees x = 2 p / (K-1) - 1 in [-1, 1]
(Ho et al. 2020, Section 3.3, where K = 256). The inverse rounds; truncation would shift levels.
"""

import torch
from torch import Tensor

from ddpm.support.finite import finite


def check_levels(levels: int) -> None:
    """Raise ValueError unless K is in 2..256."""
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be in 2..256, got {levels}; 8-bit images have 256")


def to_unit(pixels: Tensor, levels: int) -> Tensor:
    """x = 2 p / (K-1) - 1.

    Args:
        pixels: grey levels 0..K-1, uint8, any shape.
        levels: K in 2..256.
    Returns:
        float32 in [-1, 1], the shape of pixels.
    Raises:
        TypeError: pixels are not uint8 (for instance already scaled).
    """
    check_levels(levels)
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8 grey levels, got {pixels.dtype}; scale them only once")
    return 2 * pixels.float() / (levels - 1) - 1  # in this order both ends are exact


def to_pixels(x: Tensor, levels: int) -> Tensor:
    """The grey level nearest to x, round((x + 1) (K-1) / 2), after clamping x to [-1, 1].

    Args:
        x: real numbers, any shape; values outside [-1, 1] are clamped.
        levels: K in 2..256.
    Returns:
        uint8 levels 0..K-1, the shape of x.
    Raises:
        ValueError: x holds NaN or infinity.
    """
    check_levels(levels)
    finite(x, "images")
    # float32 at least: bfloat16 cannot tell 256 levels apart in the product
    return ((x.float().clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().to(torch.uint8)


def as_uint8(pixels: Tensor, levels: int) -> Tensor:
    """Grey levels 0..K-1 rescaled to 0..255, round(255 p / (K-1)); the identity for K = 256.

    Args:
        pixels: uint8 levels 0..K-1, any shape.
        levels: K in 2..256.
    Returns:
        uint8 in 0..255, the shape of pixels, for image files and feature networks.
    """
    check_levels(levels)
    return (pixels.double() * 255 / (levels - 1)).round().to(torch.uint8)
