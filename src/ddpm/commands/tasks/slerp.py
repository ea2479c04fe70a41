"""Interpolate spherically between the latents of two samples, with a deterministic sampler."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddpm.commands import plots
from ddpm.commands.subject import Subject
from ddpm.commands.tasks.between import pairs, weights
from ddpm.generation.interpolation import slerp
from ddpm.support.bars import Steps


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Check the options; the returned function writes one row per pair of samples."""
    weight, chosen = weights(subject.cfg.points), pairs(subject.cfg.images)
    if not subject.sampler.deterministic:
        raise ValueError("task=slerp needs a deterministic sampler, such as sampler=ddim, dpm_solver, heun or euler")

    def run(folder: Path) -> None:
        rows = []
        with Steps("sampling", len(chosen) * subject.sampler.chain(subject.model).T) as steps:
            for i, j in chosen:
                a, b = subject.noise([i, j])(0)
                between = slerp(a, b, weight)

                def start(step: int, between: Tensor = between) -> Tensor:
                    return between

                rows.append(subject.sampler.sample(subject.model, start, steps))
        columns = [f"{w:.2f}" for w in weight.tolist()]
        labels = [f"{i}, {j}" for i, j in chosen]
        figure = plots.tiles(subject.grey(torch.stack(rows)), columns, labels, "between latents")
        plots.save(figure, folder / "slerp.png", subject.text)

    return run
