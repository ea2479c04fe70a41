"""The progress bar of training."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from ddpm.support import bars

NAMES = {"train/loss": "loss", "val/loss": "validation", "images_per_second": "images/s"}
"""Metrics next to the bar and their names there, most important first: 80 columns have room for the loss only."""


class Progress(TQDMProgressBar):
    """One bar for the whole run; a line every few seconds if the output is not a terminal.

    Args:
        refresh_rate: batches between two updates.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate)

    def init_train_tqdm(self) -> tqdm:
        return bars.bar("training", None, self.is_enabled, leave=True, smoothing=0, bar_format=self.BAR_FORMAT)

    def init_validation_tqdm(self) -> tqdm:
        return bars.bar("validation", None, self.is_enabled, leave=False, position=1, bar_format=self.BAR_FORMAT)

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        bar = self.train_progress_bar
        bar.reset(self.total_train_batches)
        bar.n = bar.last_print_n = bar.initial = trainer.global_step * trainer.accumulate_grad_batches

    def on_train_epoch_start(self, *args: Any) -> None:
        """Do nothing: the run is one epoch, and Lightning would reset the bar of a resumed run."""

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run: Lightning would count only those that a resumed run has left."""
        return int(self.trainer.num_training_batches)

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The metrics next to the bar: those of `NAMES`, in that order, then those of the user's own callbacks."""
        metrics = super().get_metrics(*args, **kwargs)
        metrics.pop("v_num", None)
        named = {NAMES[key]: metrics.pop(key) for key in NAMES if key in metrics}
        return named | metrics
