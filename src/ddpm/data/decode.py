"""One image file to one uint8 tensor, whatever its mode and size.

The rule, in this order:
  1. Turn as the EXIF orientation says.
  2. 16-bit grey becomes 8-bit by round(v / 257), so that 65535 -> 255; transparent pixels are laid over
     white; any other mode is converted to RGB by PIL. One channel is ITU-R 601 luma of that RGB.
  3. Cut the largest centred square.
  4. Resize by PIL's bicubic filter, which widens with the reduction (antialiased); never enlarge.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("its grey levels do not fit in 16 bits")
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its grey levels are real numbers of unknown range")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, "white")
        image.alpha_composite(above)
    return image.convert("RGB")


@dataclass(frozen=True)
class Decode:
    """path -> uint8 (channels, image_size, image_size) by the rule of this module.

    Raises:
        ValueError: the file cannot be read, or is smaller than image_size; in one line with the remedy.
    """

    image_size: int
    channels: int

    def check(self, path: Path) -> None:
        """Look at the header only: readable, and large enough."""
        try:
            with Image.open(path) as image:
                size = image.size
        except _UNREADABLE as error:
            raise self._unreadable(path, error) from None
        if min(size) < self.image_size:
            raise ValueError(
                f"{path} has {size[0]}x{size[1]} pixels, fewer than image_size={self.image_size};"
                f" choose image_size <= {min(size)}, or enlarge or remove the file"
            )

    def __call__(self, path: Path) -> Tensor:
        """uint8 (channels, image_size, image_size)."""
        self.check(path)
        try:
            with Image.open(path) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                rgb = _to_rgb(upright)
        except _UNREADABLE as error:
            raise self._unreadable(path, error) from None
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side))
        resized = square.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = np.array(resized.convert("L") if self.channels == 1 else resized)
        return torch.from_numpy(pixels.reshape(self.image_size, self.image_size, -1)).permute(2, 0, 1)

    @staticmethod
    def _unreadable(path: Path, error: Exception) -> ValueError:
        cause = " ".join(str(error).split())
        return ValueError(f"cannot read {path} ({cause}); replace it with a readable copy or remove it")
