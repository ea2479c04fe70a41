"""Loggers that need a decision."""

import csv
import netrc
import os
from typing import Any
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _Appending(ExperimentWriter):
    """Goes on in a metrics.csv that exists, which Lightning would delete."""

    def _check_log_dir_exists(self) -> None:
        if os.path.exists(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = csv.DictReader(file).fieldnames or []  # type: ignore[assignment]


class CSV(CSVLogger):
    """Writes `metrics.csv` into the run's folder; a run that is resumed there goes on in it."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name=None, version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, made at its first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _Appending(self.log_dir)
        return self._experiment  # type: ignore[return-value]


def wandb_logger(save_dir: str, offline: bool | None = None, **options: Any) -> WandbLogger:
    """A W&B logger that never asks for a key: without one it writes offline, for `wandb sync` later.

    Args:
        save_dir: the run's folder.
        offline: None to decide by whether there is a key and WANDB_MODE.
        options: of `WandbLogger`.
    """
    if offline is None:
        offline = os.environ.get("WANDB_MODE", "online") == "offline" or not _has_key()
    if offline:
        # Lightning sets WANDB_MODE, which comes too late if wandb has read its settings before.
        options["mode"] = "offline"
    return WandbLogger(save_dir=save_dir, offline=offline, **options)


def _has_key() -> bool:
    """Whether a key is in the environment, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
