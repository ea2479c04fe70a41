"""Samples of a checkpoint, as files."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm import build, cli
from ddpm.data.scaling import as_uint8, to_pixels
from ddpm.draw import draw
from ddpm.grid import grid, save_png
from ddpm.progress import Steps

FORMATS = ("png", "npz")
MOST_TILES = 256


def sample(cfg: Any) -> Path:
    """Draw samples; write a grid of the first ones and all images into a new folder, which is returned.

    Args:
        cfg: a `SampleConfig`.
    """
    if cfg.format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {cfg.format!r}")
    for name, value in (("n", cfg.n), ("batch_size", cfg.batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    opened = cli.opened(cfg)
    model = opened.model
    sampler = build.sampler(opened.config["sampler"] if cfg.sampler is None else cfg.sampler, model.T)
    folder = cli.new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "samples")

    parts, shape = [], opened.config["image"]["shape"]
    with Steps("sampling", math.ceil(cfg.n / cfg.batch_size) * sampler.chain(model).T) as progress:
        for x, index in draw(model, sampler, shape, range(cfg.n), opened.seed, cfg.batch_size, progress):
            parts.append(as_uint8(to_pixels(x, model.levels), model.levels).cpu())
            if cfg.format == "png":
                for image, i in zip(parts[-1], index.tolist(), strict=True):
                    save_png(image, folder / "images" / f"{i:06d}.png")
    images = torch.cat(parts)
    if cfg.format == "npz":
        np.savez_compressed(folder / "samples.npz", samples=images.permute(0, 2, 3, 1).numpy())
    path = save_png(grid(images[:MOST_TILES]), folder / "grid.png")
    print(f"{cfg.n} images in {os.path.relpath(folder)}, the grid in {os.path.relpath(path)}")
    return folder
