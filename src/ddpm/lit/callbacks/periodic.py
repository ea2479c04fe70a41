"""Callbacks that run every so many steps and at the end of training."""

from abc import abstractmethod
from collections.abc import Mapping, Set
from types import MappingProxyType

import lightning
import torch

from ddpm.lit.module import DDPM


class Periodic(lightning.Callback):
    """Runs after every `every_n_steps` optimizer steps and after the last one; called by `BetweenSteps`.

    Args:
        every_n_steps: steps between two runs; None for the end only.
    """

    labels: Mapping[str, str] = MappingProxyType({})
    """Names of the metrics that `run` may record, which other callbacks can monitor, and what to print for each."""

    def __init__(self, every_n_steps: int | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, or null for the end of training alone, got {every_n_steps}"
            )
        self.every_n_steps = every_n_steps

    @abstractmethod
    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        """What to do; called on every rank. If a signal interrupts it, the resumed run repeats it."""

    def due(self, step: int) -> bool:
        """Whether to call `run` after this step."""
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0

    def record(self, trainer: lightning.Trainer, module: DDPM, metrics: Mapping[str, float]) -> None:
        """Log metrics, keep them as the latest results, and notify the callbacks that monitor them."""
        module.results.update(metrics)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=trainer.global_step)
        for callback in monitoring(trainer, {*metrics}):
            type(callback).on_validation_end(callback, trainer, module)


def monitoring(trainer: lightning.Trainer, metrics: Set[str]) -> list[lightning.Callback]:
    """Callbacks that monitor one of the metrics, such as Lightning's ModelCheckpoint and EarlyStopping."""
    return [callback for callback in trainer.callbacks if getattr(callback, "monitor", None) in metrics]  # type: ignore[attr-defined]
