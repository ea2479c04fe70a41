"""Loggers that need a decision."""

import os
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(save_dir: str, offline: bool | None = None, **options: Any) -> WandbLogger:
    """A W&B logger that never asks for a key: without one it writes offline, for `wandb sync` later.

    Args:
        save_dir: the run's folder.
        offline: None to decide by whether there is a key and WANDB_MODE.
        options: of `WandbLogger`.
    """
    if offline is None:
        offline = os.environ.get("WANDB_MODE", "online") == "offline" or not wandb.api.api_key
    return WandbLogger(save_dir=save_dir, offline=offline, **options)
