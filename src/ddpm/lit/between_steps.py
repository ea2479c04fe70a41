"""The callback that acts between two steps."""

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
    """Handles signals, writes checkpoints and runs the periodic callbacks, in this order, on every process.

    The checkpoint comes before the callbacks, so a run that is stopped or killed while they run repeats them when it is
    resumed. Only the checkpoint of the last step comes after them, because a finished run is not resumed: a run stopped
    during its last callbacks resumes one step earlier.

    Args:
        signals: the signals that ask the run to stop.
        begin: called by the first process once all checks have passed, with the number of log rows that the checkpoint
            covers, None without a checkpoint.

    Attributes:
        signals: the signals that ask the run to stop.
        saved: step of `last.ckpt` in the run's folder, -1 before there is one.
    """

    def __init__(self, signals: Signals, begin: Callable[[int | None], None]) -> None:
        self.signals = signals
        self.saved = -1
        self._begin = begin
        self._state: dict[str, Any] | None = None
        self._acted = -1  # the last step after which the callbacks ran
        self._batches = 0  # validation batches that every process has

    def state_dict(self) -> dict[str, Any]:
        """Placeholder for the entry that `on_save_checkpoint` fills in."""
        return {"rows": 0, "acted": False}

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: DDPM, checkpoint: dict[str, Any]
    ) -> None:
        """Store the length of the log, and whether the callbacks have run after this step."""
        for logger in trainer.loggers:
            logger.save()
        checkpoint["callbacks"][self.state_key] = {
            "rows": rows(Path(trainer.default_root_dir) / METRICS),
            "acted": self._acted == trainer.global_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint's entry, which has been checked."""
        self._state = {"rows": int(state_dict["rows"]), "acted": state_dict["acted"]}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        step, resumed = trainer.global_step, trainer.ckpt_path
        self._acted = step if self._state is None or self._state["acted"] else -1
        if resumed is not None and Path(resumed).resolve() == (Path(trainer.default_root_dir) / LAST).resolve():
            self.saved = step
        recorded = {name for callback in _periodic(trainer) for name in callback.labels}
        for callback in monitoring(trainer, recorded):
            vars(callback)["on_validation_end"] = _nothing  # hides its method, which `Periodic.record` calls instead
        if trainer.is_global_zero:
            self._begin(None if self._state is None else self._state["rows"])
        self.signals.install()  # again: Lightning's own handler would stop each process at a different point
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
            progress.increment_started()  # tells Lightning that it was stopped during validation
            self._save(trainer, pl_module)
            raise Interrupted(signum)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        signum = most(self.signals.asked)
        if trainer.global_step < trainer.max_steps:  # stopped early, for instance by trainer.max_time
            self._save(trainer, pl_module)
        if signum:
            raise Interrupted(signum)
        if self._acted != trainer.global_step:
            self._act(trainer, pl_module, _periodic(trainer))
        self.saved = -1  # the one on disk says that the callbacks have not run
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
    """Replaces `on_validation_end` of callbacks whose metrics are recorded after validation."""


def _periodic(trainer: lightning.Trainer) -> list[Periodic]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Periodic)]  # type: ignore[attr-defined]
