"""Progressive generation: x_t and x^_0 along the chain."""

from collections.abc import Callable
from pathlib import Path

import torch

from ddpm.commands import plots
from ddpm.commands.subject import Subject
from ddpm.generation.trajectory import evenly
from ddpm.support.bars import Steps
from ddpm.support.pictures import grid, save_gif

FRAMES = 60


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Check the options; the returned function writes a strip as PNG and an animation as GIF."""
    columns = subject.cfg.points
    if columns < 2:
        raise ValueError(f"points must be at least 2, got {columns}")

    classes = subject.classes(subject.labels)

    def run(folder: Path) -> None:
        chain = subject.sampler.chain(subject.model)
        noise = subject.noise(range(subject.cfg.n))
        model = subject.model.given(classes.of(range(subject.cfg.n)).to(subject.device), classes.guidance)
        shown, moving = evenly(chain.T - 1, columns), evenly(chain.T - 1, FRAMES)
        strip, frames = [], []
        with torch.inference_mode(), Steps("sampling", chain.T) as steps:
            for state in subject.sampler.trajectory(model, noise):
                steps()
                both = torch.stack([subject.grey(state.x), subject.grey(state.x_0)], 1)
                if state.step in shown:
                    strip.append(both)
                if state.step in moving:
                    frames.append(grid(both.transpose(0, 1).flatten(0, 1), subject.cfg.n))
        tiles = torch.stack(strip, 2).flatten(0, 1)  # for each sample, a row of x and a row of x^_0
        times = [f"{float(chain.process.times[step]):g}" for step in shown]
        rows = [label for _ in range(subject.cfg.n) for label in ("$x_t$", r"$\hat{x}_0$")]
        plots.save(plots.tiles(tiles, times, rows, "t ="), folder / "strip.png", subject.text)
        save_gif(frames, folder / "progressive.gif", comment=subject.text["ddpm"])

    return run
