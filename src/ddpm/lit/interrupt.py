"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, stop."""

import os
import signal
from types import FrameType
from typing import Any

import lightning

from ddpm.lit.callbacks.checkpoint import Checkpoint
from ddpm.lit.module import DDPM
from ddpm.processes import most, share


class Interrupted(BaseException):
    """Training was asked to stop.

    Attributes:
        signal: which signal asked.
        saved: whether a checkpoint was written for it.
    """

    def __init__(self, signum: int, saved: bool) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signal = signum
        self.saved = saved


class Interrupt(lightning.Callback):
    """Stops at the same step on all processes; a second signal, or one outside of the steps, stops at once."""

    def __init__(self) -> None:
        self._signal = 0
        self._stepping = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        # After Lightning has set its own handlers, which would stop the processes at different steps.
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._handle)
        self._stepping = True

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and (signum := most(self._signal)):
            saving = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
            for callback in saving:
                callback.run(trainer, pl_module)
            raise Interrupted(signum, bool(saving))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        self._stepping = False
        if self._signal:
            raise Interrupted(self._signal, False)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._signal or not self._stepping:
            raise Interrupted(signum, False)
        self._signal = signum
        if share().rank == 0:
            said = f"\n{signal.Signals(signum).name}: stopping after this step; once more to stop at once\n"
            os.write(2, said.encode())  # print is not to be used amid another print, where a signal may come
