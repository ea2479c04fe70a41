"""Interpolate between two real images, diffused with the same noise (Ho et al. 2020, Figure 8)."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm.commands import plots
from ddpm.commands.subject import Subject
from ddpm.commands.tasks.between import pairs, weights
from ddpm.generation.interpolation import interpolate
from ddpm.support.bars import Steps


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Check the options; the returned function writes one row per pair, with the real images at its ends."""
    cfg = subject.cfg
    chain = subject.sampler.chain(subject.model)
    weight, chosen = weights(cfg.points), pairs(cfg.images)
    depth = math.ceil(subject.model.T / 2) if cfg.depth is None else cfg.depth
    if not 1 <= depth <= subject.model.T:
        raise ValueError(f"depth, the time to which images are diffused, must be in 1..{subject.model.T}, got {depth}")
    step = max(1, int((chain.process.times - depth).abs().argmin()))
    real = dict(zip(cfg.images, subject.real(cfg.images), strict=True))

    def run(folder: Path) -> None:
        rows = []
        with Steps("sampling", step * len(chosen)) as steps:
            for k, (i, j) in enumerate(chosen):
                noise = subject.noise([k])
                between = interpolate(subject.model, subject.sampler, real[i], real[j], step, weight, noise, steps)
                rows.append(torch.cat([real[i][None], between, real[j][None]]))
        columns = ["image", *[f"{w:.2f}" for w in weight.tolist()], "image"]
        title = f"interpolated at t = {float(chain.process.times[step]):g}"
        figure = plots.tiles(subject.grey(torch.stack(rows)), columns, None, title)
        plots.save(figure, folder / "interpolation.png", subject.text)

    return run
