"""Samples, as a grid and as files."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ddpm.draw import draw
from ddpm.grid import grid, save_png
from ddpm.progress import Steps
from ddpm.tasks.job import Job

FORMATS = ("png", "npz")
MOST_TILES = 256


def prepare(job: Job) -> Callable[[Path], None]:
    """Check the options; what is returned draws and writes."""
    cfg = job.cfg
    if cfg.format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {cfg.format!r}")

    def run(folder: Path) -> None:
        parts = []
        total = math.ceil(cfg.n / cfg.batch_size) * job.sampler.chain(job.model).T
        with Steps("sampling", total) as steps:
            for x, index in draw(job.model, job.sampler, job.shape, range(cfg.n), job.seed, cfg.batch_size, steps):
                parts.append(job.grey(x))
                if cfg.format == "png":
                    for image, i in zip(parts[-1], index.tolist(), strict=True):
                        save_png(image, folder / "images" / f"{i:06d}.png")
        images = torch.cat(parts)
        if cfg.format == "npz":
            np.savez_compressed(folder / "samples.npz", samples=images.permute(0, 2, 3, 1).numpy())
        save_png(grid(images[:MOST_TILES]), folder / "grid.png")

    return run
