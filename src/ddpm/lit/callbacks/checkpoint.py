"""Checkpoints."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM


class Checkpoint(Periodic, LightningCheckpoint):
    """Writes `last.ckpt` into the run's folder, each time in place of the one before.

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
        folder = Path(trainer.default_root_dir)
        trainer.save_checkpoint(folder / "last.ckpt")
        if self.keep_every_n_steps and trainer.global_step % self.keep_every_n_steps == 0:
            trainer.save_checkpoint(folder / f"step_{trainer.global_step:07d}.ckpt")
