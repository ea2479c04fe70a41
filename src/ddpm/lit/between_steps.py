"""What happens between two steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch

from ddpm.lit.callbacks.checkpoint import Checkpoint
from ddpm.lit.callbacks.periodic import Periodic, monitoring
from ddpm.lit.interrupt import Interrupted, Signals
from ddpm.lit.module import DDPM
from ddpm.parallel.processes import least, most
from ddpm.setup.run_folder import LAST, METRICS, rows


class BetweenSteps(lightning.Callback):
    """Obeys a signal, writes the checkpoint, and lets the periodic callbacks act, in this order, on all processes.

    A checkpoint is written before callbacks act, so that a run that is stopped or killed amid their work resumes with
    that work. Only the checkpoint of the last step follows it, since a finished run is not resumed: whoever stops its
    last work resumes at the step before.

    Args:
        signals: what asks the run to stop.
        begin: called by the first process when nothing can be refused any more, with the number of rows of the log
            that the checkpoint knows of, None without a checkpoint.

    Attributes:
        signals: what asks the run to stop.
        saved: the step of `last.ckpt` in the run's folder, -1 before there is one.
    """

    def __init__(self, signals: Signals, begin: Callable[[int | None], None]) -> None:
        self.signals = signals
        self.saved = -1
        self._begin = begin
        self._state: dict[str, Any] | None = None
        self._acted = -1  # the step after which the callbacks have acted
        self._batches = 0  # of validation, that every process has

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of its moment, of which `on_save_checkpoint` knows more."""
        return {"rows": 0, "acted": False}

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, checkpoint: dict[str, Any]
    ) -> None:
        """Say how long the log is, and whether the callbacks have acted after this step."""
        for logger in trainer.loggers:
            logger.save()
        checkpoint["callbacks"][self.state_key] = {
            "rows": rows(Path(trainer.default_root_dir) / METRICS),
            "acted": self._acted == trainer.global_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint says, which has been checked."""
        self._state = {"rows": int(state_dict["rows"]), "acted": state_dict["acted"]}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        step, resumed = trainer.global_step, trainer.ckpt_path
        self._acted = step if self._state is None or self._state["acted"] else -1
        if resumed is not None and Path(resumed).resolve() == (Path(trainer.default_root_dir) / LAST).resolve():
            self.saved = step
        recorded = {name for callback in _periodic(trainer) for name in callback.labels}
        for callback in monitoring(trainer, recorded):
            vars(callback)["on_validation_end"] = _nothing  # before its own, which `Periodic.record` calls
        if trainer.is_global_zero:
            self._begin(None if self._state is None else self._state["rows"])
        self.signals.install()  # once more, after Lightning has set a handler that would stop each process elsewhere
        self.signals.held = True

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step, signum = trainer.global_step, most(self.signals.asked)
        due = [callback for callback in _periodic(trainer) if callback.due(step)]
        if signum or (step > 0 and (due or self.saved < 0 or step == trainer.max_steps - 1)):
            self._save(trainer, pl_module)
        if signum:
            raise Interrupted(signum)
        if due and self._acted != step:
            self._act(trainer, pl_module, due)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        self._batches = int(least(torch.tensor(trainer.num_val_batches[0])))

    def on_validation_batch_start(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx < self._batches and (signum := most(self.signals.asked)):
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.current.reset()  # the resumed run validates from the first batch
            progress.increment_started()  # which Lightning takes for having been stopped amid validation
            self._save(trainer, pl_module)
            raise Interrupted(signum)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        signum = most(self.signals.asked)
        if trainer.global_step < trainer.max_steps:  # the time is up
            self._save(trainer, pl_module)
        if signum:
            raise Interrupted(signum)
        if self._acted != trainer.global_step:
            self._act(trainer, pl_module, _periodic(trainer))
        self.saved = -1  # what is there says that the callbacks have not acted
        self._save(trainer, pl_module)

    def _save(self, trainer: lightning.Trainer, module: DDPM) -> None:
        writers = [callback for callback in _periodic(trainer) if isinstance(callback, Checkpoint)]
        if writers and self.saved != trainer.global_step:
            for callback in writers:
                callback.run(trainer, module)
            self.saved = trainer.global_step

    def _act(self, trainer: lightning.Trainer, module: DDPM, callbacks: list[Periodic]) -> None:
        module.check_finite()
        with self.signals.at_once():
            for callback in callbacks:
                if not isinstance(callback, Checkpoint):
                    callback.run(trainer, module)
        self._acted = trainer.global_step


def _nothing(*args: Any) -> None:
    """In place of a look at metrics that are recorded after validation."""


def _periodic(trainer: lightning.Trainer) -> list[Periodic]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Periodic)]  # type: ignore[attr-defined]
