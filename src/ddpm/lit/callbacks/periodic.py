"""A callback that acts every so many steps, and at the end."""

from abc import abstractmethod
from collections.abc import Mapping, Set
from typing import ClassVar

import lightning
import torch

from ddpm.lit.module import DDPM


class Periodic(lightning.Callback):
    """Acts after every `every_n_steps` optimizer steps and after the last one; `BetweenSteps` calls it.

    Args:
        every_n_steps: steps between two runs; None for the end alone.
    """

    records: ClassVar[frozenset[str]] = frozenset()
    """The names of the metrics that `run` may record, which other callbacks can monitor."""

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
        """Send metrics to the loggers, keep them as the latest results, and let callbacks that monitor them act."""
        module.results.update(metrics)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=trainer.global_step)
        for callback in monitoring(trainer, {*metrics}):
            type(callback).on_validation_end(callback, trainer, module)


def monitoring(trainer: lightning.Trainer, metrics: Set[str]) -> list[lightning.Callback]:
    """The callbacks that monitor one of the metrics, such as Lightning's ModelCheckpoint and EarlyStopping."""
    return [callback for callback in trainer.callbacks if getattr(callback, "monitor", None) in metrics]  # type: ignore[attr-defined]
