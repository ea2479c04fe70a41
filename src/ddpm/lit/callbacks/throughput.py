"""Images per second."""

import time
from typing import Any

import lightning

from ddpm.lit.datamodule import Batch
from ddpm.lit.module import DDPM


class Throughput(lightning.Callback):
    """Training images per second over all processes, including data loading, without validation and other callbacks.

    Measured between two logging steps. It must come first among the callbacks, so that the work of the others falls
    between two windows.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._end = 0.0
        self._images = 0
        self._total_images = 0
        self._total_seconds = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._start is None:
            return
        self._end = time.perf_counter()
        self._images += len(batch.x_0) * trainer.world_size
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if accumulated and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("images_per_second", self._close(pl_module), prog_bar=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        if self._start is not None and self._images:
            self._close(pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restart()

    def _close(self, module: DDPM) -> float:
        """End the window and return its rate; the rate over all windows goes into the results."""
        assert self._start is not None
        seconds = self._end - self._start
        rate = self._images / seconds
        self._total_images += self._images
        self._total_seconds += seconds
        module.results["images_per_second"] = self._total_images / self._total_seconds
        self._restart()
        return rate

    def _restart(self) -> None:
        self._start, self._images = None, 0
