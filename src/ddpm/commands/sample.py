"""Samples from a checkpoint, and other tasks that use a sampler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm.commands.output import new_folder
from ddpm.commands.subject import WITH_CLASSES, Subject, subject
from ddpm.commands.tasks import encode, grid, interpolate, inverse, progressive, slerp
from ddpm.support.files import write_json

TASKS: dict[str, Callable[[Subject], Callable[[Path], None]]] = {
    "grid": grid.prepare,
    "progressive": progressive.prepare,
    "interpolate": interpolate.prepare,
    "slerp": slerp.prepare,
    "encode": encode.prepare,
    "inverse": inverse.prepare,
}
SHARED = ("grid", "inverse")
"""Tasks that run on several processes; the others, which are short, run on the first."""


def sample(cfg: Any) -> Path:
    """Run the requested task; returns the new folder that it wrote.

    Args:
        cfg: a `SampleConfig`.
    """
    if cfg.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {cfg.task!r}")
    for name, value in (("n", cfg.n), ("batch_size", cfg.batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if cfg.task not in WITH_CLASSES and (cfg.labels is not None or cfg.guidance != 0):
        raise ValueError(f"task={cfg.task} takes no labels and no guidance; use task={' or '.join(WITH_CLASSES)}")
    if cfg.task != "inverse" and (cfg.operator or cfg.solver):
        raise ValueError(f"task={cfg.task} takes no operator and no solver; use task=inverse")
    if cfg.input in ("train", "test"):
        cfg.split, cfg.input = cfg.input, None
    of = subject(cfg)
    run = TASKS[cfg.task](of)
    with new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "samples", of.leads) as folder:
        if of.leads or cfg.task in SHARED:
            run(folder)
        if of.leads:
            write_json(folder / "sample.json", of.made_by)
    return folder
