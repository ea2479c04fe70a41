"""The command that resumes an interrupted run."""

import os
import shlex
import signal
import sys
from pathlib import Path

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddpm.lit.interrupt import Interrupted
from ddpm.parallel import rendezvous
from ddpm.setup import run_folder
from ddpm.setup.shell import argument, command


def how_to_resume(stop: Interrupted, trainer: lightning.Trainer, step: int) -> str:
    """A line with the step of the last checkpoint and the command that resumes it."""
    name = signal.Signals(stop.signal).name
    if step < 0:
        return f"{name}: stopped; there is no checkpoint to resume"
    folder = os.path.relpath(trainer.default_root_dir)
    place = [argument("ckpt", Path(folder) / run_folder.LAST), argument("hydra.run.dir", folder)]
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        line = f"repeat the command with {argument('hydra.sweep.dir', os.path.relpath(hydra.sweep.dir))}"
    elif rendezvous.started_together():
        line = f"repeat the command with {' '.join(place)}"
    else:
        typed = [] if hydra is None else sys.argv[1:]
        kept = [each for each in typed if each.lstrip("+").split("=")[0] not in ("ckpt", "hydra.run.dir")]
        line = command("train", *place, *map(shlex.quote, kept))
    return f"{name}: saved after step {step}; to resume: {line}"
