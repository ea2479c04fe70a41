"""The CSV and W&B loggers."""

import csv
import netrc
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from ddpm.parallel.processes import share


class _Appending(ExperimentWriter):
    """Appends to an existing metrics.csv, which Lightning would delete."""

    def _check_log_dir_exists(self) -> None:
        if os.path.exists(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = csv.DictReader(file).fieldnames or []  # type: ignore[assignment]


class CSV(CSVLogger):
    """Writes `metrics.csv` into the run's folder; a run that is resumed there appends to it."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name=None, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, created on first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _Appending(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the configuration is in `.hydra/`."""


def wandb_logger(
    save_dir: str,
    offline: bool | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    **options: Any,
) -> WandbLogger:
    """A W&B logger that never prompts for a key or waits for a network connection.

    Args:
        save_dir: the run's folder.
        offline: write offline, for `wandb sync` later. None obeys `WANDB_MODE` and `WANDB_DISABLED`; if they are not
            set, a run is online if there is a key and W&B answers.
        name: name of the run; None uses its overrides.
        group: group of the run; None uses its sweep.
        job_type: what the run does.
        options: further options of `WandbLogger`.
    """
    mode = _mode() if offline is None else "offline" if offline else "online"
    told_name, told_group = _from_hydra()
    return WandbLogger(
        name=name or told_name,
        save_dir=save_dir,
        offline=mode == "offline",
        # Lightning sets WANDB_MODE, but too late if wandb has already read its settings.
        mode=mode,
        group=group or told_group,
        job_type=job_type,
        **options,
    )


def run_id(loggers: Iterable[Logger]) -> str | None:
    """The id of the W&B run, stored in checkpoints; None without W&B."""
    return next((logger.version for logger in loggers if isinstance(logger, WandbLogger)), None)


def go_on(loggers: Iterable[Logger], id: object) -> None:
    """Make W&B continue a checkpoint's run, unless another is configured; call before the logger is first used."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.version is None and isinstance(id, str):
            logger._id = logger._wandb_init["id"] = id


def _from_hydra() -> tuple[str | None, str | None]:
    """The overrides, cut to the 128 characters that W&B allows, and the name of the sweep."""
    if not HydraConfig.initialized():
        return None, None
    hydra = HydraConfig.get()
    typed = [each for each in hydra.overrides.task if each.split("=")[0].lstrip("+~") not in ("ckpt", "logger")]
    group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None
    return (" ".join(typed) or str(hydra.runtime.choices["data"]))[:128], group


def _mode() -> str:
    """`online`, `offline` or `disabled`."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    if chosen := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline"}.get(chosen, chosen)
    host = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if not _has_key(host):
        return "offline"
    if _answers(host):
        return "online"
    if share().rank == 0:
        print(f"W&B: {host} does not answer; logging offline, to upload later with `wandb sync`")
    return "offline"


def _has_key(host: str) -> bool:
    """Whether a key is in the environment, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(host).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(host: str, seconds: float = 5.0) -> bool:
    """Whether a server responds in time; runs in a thread, because name lookup has no timeout of its own."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(host, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()
