"""Checkpoints."""

import io
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ddpm.files import written
from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.run_folder import LAST


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one before and then takes its place, so that one is always whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with written(Path(path), durable=True) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class Checkpoint(Periodic, LightningCheckpoint):
    """Writes `last.ckpt` into the run's folder, each time in place of the one before.

    It is written when a step has been validated and logged, before the other callbacks act, even if it would not be
    due; also before the last step.

    Args:
        every_n_steps: steps between two checkpoints; None for the end alone.
        keep_every_n_steps: steps between checkpoints that are kept, as `step_0010000.ckpt`; None keeps none.
    """

    def __init__(self, every_n_steps: int | None, keep_every_n_steps: int | None) -> None:
        super().__init__(every_n_steps)
        if keep_every_n_steps is not None and (not every_n_steps or keep_every_n_steps % every_n_steps):
            raise ValueError(
                f"keep_every_n_steps must be a multiple of every_n_steps={every_n_steps}, got {keep_every_n_steps}"
            )
        self.keep_every_n_steps = keep_every_n_steps

    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        module.check_finite()
        folder = Path(trainer.default_root_dir)
        trainer.save_checkpoint(folder / LAST)
        if self.keep_every_n_steps and trainer.global_step % self.keep_every_n_steps == 0:
            trainer.save_checkpoint(folder / f"step_{trainer.global_step:07d}.ckpt")
