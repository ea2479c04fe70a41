"""Images per second, and training time."""

import time
from typing import Any

import lightning

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.datamodule import Batch
from ddpm.lit.module import DDPM


class Throughput(lightning.Callback):
    """Training images per second over all processes, and the seconds that the run has trained for, resumed or not.

    Data loading is included; validation and other callbacks are not: time is counted in stretches of steps with nothing
    in between. It must come first among the callbacks, so that the work of the others falls between two stretches.

    Attributes:
        seconds: of training, before the current stretch.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start: float | None = None
        self._end = 0.0
        self._images = 0
        self._logged = 0.0
        self._total_images = 0
        self._resumed = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The training time, which a resumed run continues."""
        return {"seconds": self.seconds + self._stretch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the training time."""
        self.seconds = self._logged = self._resumed = float(state_dict["seconds"])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._start is None:
            self._start = self._end = time.perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._end = time.perf_counter()
        self._images += len(batch.x_0) * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, callbacks = trainer.global_step, trainer.callbacks  # type: ignore[attr-defined]
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("images_per_second", self._close(pl_module), prog_bar=True)
            pl_module.log("seconds", self.seconds)
        elif any(isinstance(callback, Periodic) and callback.due(step) for callback in callbacks):
            self._pause()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        if self._images:
            self._close(pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._pause()

    @property
    def _stretch(self) -> float:
        """Seconds of the current stretch."""
        return 0.0 if self._start is None else self._end - self._start

    def _pause(self) -> None:
        self.seconds += self._stretch
        self._start = None

    def _close(self, module: DDPM) -> float:
        """Return the rate since it was last logged; the results get the rate over all steps, and the training time."""
        self._pause()
        rate = self._images / (self.seconds - self._logged)
        self._total_images += self._images
        self._images, self._logged = 0, self.seconds
        module.results["images_per_second"] = self._total_images / (self.seconds - self._resumed)
        module.results["seconds"] = self.seconds
        return rate
