"""A callback that acts every so many steps, and at the end."""

from abc import abstractmethod
from collections.abc import Mapping

import lightning

from ddpm.lit.module import DDPM


class Periodic(lightning.Callback):
    """Acts after every `every_n_steps` optimizer steps and after the last one; `BetweenSteps` calls it.

    Args:
        every_n_steps: steps between two runs; None for the end alone.
    """

    def __init__(self, every_n_steps: int | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, or null for the end of training alone, got {every_n_steps}"
            )
        self.every_n_steps = every_n_steps

    @abstractmethod
    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        """What to do; called on every rank. It may be cut by a signal, and is then done anew by the resumed run."""

    def due(self, step: int) -> bool:
        """Whether `run` is to be called after this step."""
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0

    def record(self, trainer: lightning.Trainer, module: DDPM, metrics: Mapping[str, float]) -> None:
        """Send metrics to the loggers, and keep them as the latest results."""
        module.results.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=trainer.global_step)
