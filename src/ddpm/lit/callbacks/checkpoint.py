"""Checkpoints."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.setup.run_folder import LAST
from ddpm.support.files import write_tensors


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file before it replaces the previous one, so that one is always complete.

    Attributes:
        content: the checkpoint to resume, read and checked, because its file may have been replaced since.
    """

    content: dict[str, Any] | None = None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the content, once."""
        content, self.content = self.content, None
        if content is None:
            raise ValueError(f"{path} is not the checkpoint to resume; remove it, or choose another folder")
        return content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_tensors(Path(path), checkpoint, durable=True)


class Checkpoint(Periodic, LightningCheckpoint):
    """Writes `last.ckpt` into the run's folder, replacing the previous one.

    It is written after a step has been validated and logged, and before other callbacks run, even if it is not due
    itself; also before the last step.

    Args:
        every_n_steps: steps between two checkpoints; None for the end only.
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
