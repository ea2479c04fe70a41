"""Samples of a checkpoint, and what else can be done by sampling."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm import cli
from ddpm.tasks import encode, grid, interpolate, progressive, slerp
from ddpm.tasks.job import Job, job

TASKS: dict[str, Callable[[Job], Callable[[Path], None]]] = {
    "grid": grid.prepare,
    "progressive": progressive.prepare,
    "interpolate": interpolate.prepare,
    "slerp": slerp.prepare,
    "encode": encode.prepare,
}


def sample(cfg: Any) -> Path:
    """Do the task that is asked for; what it writes goes into a new folder, which is returned.

    Args:
        cfg: a `SampleConfig`.
    """
    if cfg.task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {cfg.task!r}")
    for name, value in (("n", cfg.n), ("batch_size", cfg.batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    run = TASKS[cfg.task](job(cfg))
    folder = cli.new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "samples")
    run(folder)
    print(f"written: {', '.join(sorted(path.name for path in folder.iterdir()))} in {os.path.relpath(folder)}")
    return folder
