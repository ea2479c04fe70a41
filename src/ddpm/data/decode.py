"""Decode an image file of any mode and size to a uint8 tensor.

The steps, in order:
  1. Apply the EXIF orientation.
  2. Convert grey levels v of b = 12 or 16 bits to 8 bits by round(255 v / (2^b - 1)), so that 65535 -> 255; where zero
     is white, v is inverted first. Composite transparent pixels over white. PIL converts any other mode to RGB. One
     channel is the ITU-R 601 luma of that RGB.
  3. Crop the largest centred square.
  4. Resize with PIL's antialiased bicubic filter; never enlarge.

Images of unknown white level are rejected: 32-bit, signed and floating-point grey levels, and 16-bit files whose values
all fit in 12 bits, which are most likely 12-bit images that would come out nearly black.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddpm.support.text import printable

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
}
"""The PIL decoders that may be used, whatever a file's name, and the extensions of image files. Other decoders run
programs (EPS: Ghostscript) or are rarely tested."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=list(FORMATS))
    except UnidentifiedImageError:
        raise ValueError(f"it is not a complete image of type {', '.join(FORMATS)}") from None


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The TIFF tags of an image; empty for other formats."""
    return getattr(image, "tag_v2", {})


def _check_white(image: Image.Image) -> None:
    """Reject a header that does not say which level is white."""
    tags = _tags(image)
    bits = tags.get(_BITS, (8,))[0]
    if image.mode == "F":
        raise ValueError("its grey levels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) or bits > 16:
        raise ValueError(f"its levels are {bits}-bit integers of unknown range; save it with 8 or 16 unsigned bits")


def _check_used(levels: np.ndarray, largest: int) -> None:
    """Reject 16-bit levels that use only 12 bits."""
    if 0 < levels.max() <= largest:
        raise ValueError(
            "its 16-bit levels all fit in 12 bits, so it would be nearly black; rescale them to 16 or 8 bits"
        )


def _grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    levels, bits = np.asarray(image).astype(np.int64), tags.get(_BITS, (16,))[0]
    white = 2**bits - 1
    if bits == 16:
        _check_used(levels, 4095)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = white - levels
    return Image.fromarray(((2 * 255 * levels + white) // (2 * white)).astype(np.uint8))


def read(path: Path) -> Image.Image:
    """The image as displayed: upright, in RGB, over white.

    Raises:
        ValueError: it cannot be read, or its white level is unknown; one line with a remedy.
    """
    try:
        with _open(path) as image:
            _check_white(image)
            tags, has_16_bits = _tags(image), ";16" in str(getattr(image, "tile", ""))
            image.load()
            if image.mode.startswith("I"):
                upright = _grey(ImageOps.exif_transpose(image), tags)
            else:
                upright = ImageOps.exif_transpose(image)
                if has_16_bits:  # PIL keeps the upper 8
                    _check_used(np.asarray(upright)[..., :3], 15)
        if upright.has_transparency_data:
            above = upright.convert("RGBA")
            upright = Image.new("RGBA", above.size, "white")
            upright.alpha_composite(above)
        return upright.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    cause = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    return ValueError(
        f"cannot read {printable(path)} ({printable(cause)}); replace it with a readable copy or remove it"
    )


@dataclass(frozen=True)
class Decode:
    """path -> uint8 (channels, image_size, image_size), by the steps in this module's docstring.

    Raises:
        ValueError: the file cannot be read, or is smaller than image_size; one line with a remedy.
    """

    image_size: int
    channels: int

    def check(self, path: Path) -> None:
        """Check from the header only that the file is readable and large enough."""
        try:
            with _open(path) as image:
                _check_white(image)
                size = image.size
        except _UNREADABLE as error:
            raise _unreadable(path, error) from None
        if min(size) < self.image_size:
            raise ValueError(
                f"{printable(path)} has {size[0]}x{size[1]} pixels, fewer than image_size={self.image_size};"
                f" choose image_size <= {min(size)}, or enlarge or remove the file"
            )

    def __call__(self, path: Path) -> Tensor:
        """uint8 (channels, image_size, image_size)."""
        self.check(path)
        rgb = read(path)
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side))
        resized = square.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = np.array(resized.convert("L") if self.channels == 1 else resized)
        return torch.from_numpy(pixels.reshape(self.image_size, self.image_size, -1)).permute(2, 0, 1)
