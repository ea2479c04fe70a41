"""Samples, as a grid and as files."""

import math
from collections.abc import Callable
from pathlib import Path

from ddpm.commands.subject import Subject
from ddpm.generation.draw import draw
from ddpm.parallel.gathered import Gathered
from ddpm.support.bars import Steps
from ddpm.support.files import write_npz
from ddpm.support.pictures import grid, in_rows, save_png, saving

FORMATS = ("png", "npz")
MOST_TILES = 256


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Check the options; the returned function draws the samples and writes them."""
    cfg = subject.cfg
    if cfg.format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {cfg.format!r}")

    if cfg.n < subject.share.world:
        raise ValueError(f"n must be at least {subject.share.world}, one for each process, got {cfg.n}")
    model, sampler, labels = subject.model, subject.sampler, subject.labels
    classes = subject.classes(labels)

    def run(folder: Path) -> None:
        mine = subject.share.of(cfg.n)
        gathered = Gathered(("images",)).to(subject.device)
        calls = math.ceil(len(mine) / cfg.batch_size) * sampler.chain(model).T
        pictures = saving(folder / "images" if cfg.format == "png" else None, subject.text)
        with pictures as save, Steps("sampling", calls, subject.leads) as steps:
            drawn = draw(subject.sampled, sampler, subject.shape, mine, subject.seed, cfg.batch_size, steps, classes)
            for x, index in drawn:
                grey = subject.grey(x)
                gathered.update({"images": grey}, index)
                save(grey, index)
            images = gathered.compute()["images"].cpu()
        if not subject.leads:
            return
        if cfg.format == "npz":
            of_each = {"labels": classes.of(range(cfg.n))} if model.classes else {}
            write_npz(folder / "samples.npz", {"samples": images.permute(0, 2, 3, 1), **of_each})
        shown = images[:MOST_TILES]
        picture = in_rows(shown, len(labels)) if model.classes else grid(shown)
        save_png(picture, folder / "grid.png", subject.text)

    return run
