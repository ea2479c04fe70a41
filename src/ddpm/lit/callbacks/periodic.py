"""A callback that acts every so many steps, and at the end."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning

from ddpm.lit.module import DDPM


class Periodic(lightning.Callback):
    """Calls `run` after every `every_n_steps` optimizer steps and after the last one, never twice at one step.

    Args:
        every_n_steps: steps between two runs; None for the end alone.
    """

    def __init__(self, every_n_steps: int | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, or null for the end of training alone, got {every_n_steps}"
            )
        self.every_n_steps = every_n_steps
        self._last = -1

    @abstractmethod
    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        """What to do; called on every rank."""

    def due(self, step: int) -> bool:
        """Whether `run` is to be called after this step."""
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0

    def record(self, trainer: lightning.Trainer, module: DDPM, metrics: Mapping[str, float]) -> None:
        """Send metrics to the loggers, and keep them as the latest results."""
        module.results.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=trainer.global_step)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: DDPM, *args: Any) -> None:  # type: ignore[override]
        if self.due(trainer.global_step):
            self._run_once(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        self._run_once(trainer, pl_module)

    def _run_once(self, trainer: lightning.Trainer, module: DDPM) -> None:
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            module.check_finite()
            self.run(trainer, module)
