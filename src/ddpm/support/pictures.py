"""Grids of images, and PNG and GIF files."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ddpm.support.files import written


def grid(images: Tensor, columns: int | None = None, least_width: int = 512, gap: int = 2) -> Tensor:
    """Tile images in rows on white; small ones are enlarged by an integer factor without smoothing.

    Args:
        images: uint8 in 0..255, shape (N, C, H, W).
        columns: tiles per row; None for about as many rows as columns.
        least_width: enlarge tiles until the picture is about this wide, in pixels.
        gap: pixels between tiles.
    Returns:
        uint8, shape (C, rows * height, columns * width) plus gaps.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    factor = max(1, round(least_width / (columns * width)))
    tiles = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    step_y, step_x = height * factor + gap, width * factor + gap
    picture = torch.full((channels, rows * step_y + gap, columns * step_x + gap), 255, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * step_y + gap, i % columns * step_x + gap
        picture[:, y : y + step_y - gap, x : x + step_x - gap] = tile
    return picture


def in_rows(images: Tensor, rows: int) -> Tensor:
    """A `grid` of `rows` rows, with image i in row i mod rows.

    Args:
        images: uint8 in 0..255, shape (N, C, H, W).
        rows: number of rows.
    """
    columns = math.ceil(len(images) / rows)
    tiles = images.new_full((columns * rows, *images.shape[1:]), 255)
    tiles[: len(images)] = images
    order = torch.arange(columns * rows).view(columns, rows).T.flatten()
    return grid(tiles[order], columns)


def save_gif(images: Sequence[Tensor], path: Path, seconds: float = 4.0, comment: str = "") -> Path:
    """Write uint8 images (1 or 3, H, W) as an animated GIF that pauses on the last one; returns its path."""
    frames = [_picture(image) for image in images]
    each = max(20, round(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [1500]
    with written(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, comment=comment
        )
    return path


def save_png(image: Tensor, path: Path, text: Mapping[str, str] | None = None) -> Path:
    """Write one uint8 image (1 or 3, H, W) as PNG with named text entries; returns its path."""
    texts = PngInfo()
    for name, each in (text or {}).items():
        texts.add_text(name, each)
    with written(path) as temporary:
        _picture(image).save(temporary, format="PNG", pnginfo=texts)
    return path


@contextmanager
def saving(folder: Path | None, text: Mapping[str, str] | None = None) -> Iterator[Callable[[Tensor, Tensor], None]]:
    """Yield a function that saves uint8 images (B, C, H, W) with indices (B,) as `000007.png` in a folder, if any.

    An interrupt or a full disk keeps the images written so far. Any other error removes the folder: if some samples
    fail, the others do not follow the model's distribution.
    """

    def save(images: Tensor, index: Tensor) -> None:
        if folder is not None:
            for image, i in zip(images.cpu(), index.tolist(), strict=True):
                save_png(image, folder / f"{i:06d}.png", text)

    try:
        yield save
    except OSError:
        raise
    except Exception:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _picture(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
