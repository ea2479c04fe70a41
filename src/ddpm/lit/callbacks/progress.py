"""The progress bar of training."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """One bar over the steps of the whole run.

    Args:
        refresh_rate: batches between two updates.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate)

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        bar = self.train_progress_bar
        bar.set_description("training")
        bar.reset(self.total_train_batches)
        bar.n = bar.last_print_n = bar.initial = trainer.global_step * trainer.accumulate_grad_batches

    def on_train_epoch_start(self, *args: Any) -> None:
        """Nothing: the run is one epoch, and Lightning would start the bar of a resumed one anew."""

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run: Lightning would count those that a resumed run has left."""
        return int(self.trainer.num_training_batches)

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The metrics beside the bar, without Lightning's version number."""
        metrics = super().get_metrics(*args, **kwargs)
        metrics.pop("v_num", None)
        return metrics
