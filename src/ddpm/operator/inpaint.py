"""Inpainting of unknown pixels."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data.decode import read
from ddpm.operator.base import LinearOperator

MASKS = ("box", "half", "random")


class Inpaint(LinearOperator):
    """y = m x, m = 1 where a pixel is known.

    Args:
        mask: the unknown pixels: `box` for a central square, `half` for the right half, `random` for a fraction of
            the pixels, or the path of a picture for its black pixels (read as in ddpm.data.decode).
        size: side of `box` in pixels; None for half the side of the image.
        fraction: fraction of the pixels hidden by `random`, in (0, 1).
        seed: seed of `random`.
    """

    def __init__(self, mask: str = "box", size: int | None = None, fraction: float = 0.5, seed: int = 0) -> None:
        if mask not in MASKS and not Path(mask).is_file():
            raise ValueError(f"operator.mask must be {', '.join(MASKS)}, or the path of a picture, got {mask!r}")
        if not 0 < fraction < 1:
            raise ValueError(f"operator.fraction must be in (0, 1), got {fraction}")
        if size is not None and size < 1:
            raise ValueError(f"operator.size must be at least 1, got {size}")
        self.mask, self.size, self.fraction, self.seed = mask, size, fraction, seed
        self.known = lru_cache(self._known)

    def check(self, shape: Sequence[int]) -> None:
        if self.mask == "box" and self.size is not None and self.size > min(shape[1:]):
            raise ValueError(f"operator.size must be at most {min(shape[1:])}, the side of the images, got {self.size}")
        self.known(shape[1], shape[2])

    @torch.inference_mode(False)
    def _known(self, height: int, width: int) -> Tensor:
        """m, shape (H, W), 0 or 1."""
        known = torch.ones(height, width)
        if self.mask == "box":
            size = self.size or min(height, width) // 2
            top, left = (height - size) // 2, (width - size) // 2
            known[top : top + size, left : left + size] = 0
        elif self.mask == "half":
            known[:, width // 2 :] = 0
        elif self.mask == "random":
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(height * width, generator=generator)
            known.view(-1)[order[: round(self.fraction * height * width)]] = 0
        else:
            picture = read(Path(self.mask))
            if picture.size != (width, height):
                raise ValueError(
                    f"operator.mask={self.mask} is {picture.size[0]} x {picture.size[1]}, but the images are "
                    f"{width} x {height}; use a mask of that size"
                )
            known = torch.from_numpy(np.asarray(picture.convert("L")) > 127).float()
        return known

    def __call__(self, x: Tensor) -> Tensor:
        return self.known(*x.shape[2:]).to(x) * x
