"""Loggers that need a decision."""

import netrc
import os
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger


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
