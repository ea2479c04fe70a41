"""What the three entry points share."""

import errno
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm import allocator, files, followers, processes

EXPLAINED = (ValueError, OSError, OmegaConfBaseException, HydraException)
"""Errors that their message explains."""
FULL = "DDPM_FULL_ERROR"
"""Holds what HYDRA_FULL_ERROR was set to, also in the processes that a launcher of Hydra's starts."""


def start(entry: str, main: Callable[[], None]) -> None:
    """Run an entry point; what a user got wrong is one line, without a stack trace unless HYDRA_FULL_ERROR=1.

    Args:
        entry: a key of `followers.JOBS`.
        main: Hydra's; it calls `lead` for each job.
    """
    os.environ[FULL] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises errors instead of printing them
    allocator.keep_memory()
    try:
        followers.start(entry, main)
    except EXPLAINED as error:
        if full():
            raise
        sys.exit(explained(error))


def job(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Ends a single run at an error that its message explains; in a sweep Hydra says which job it was."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except EXPLAINED as error:
            if full() or HydraConfig.get().mode != RunMode.RUN:
                raise
            sys.exit(explained(error))

    return wrapped


def full() -> bool:
    """Whether stack traces are asked for."""
    return os.environ.get(FULL) == "1"


def explained(error: BaseException) -> str:
    """What the user is told of an error of `EXPLAINED`."""
    if isinstance(error, HydraException):  # its own messages list options, one a line
        cause = error.__cause__
        return f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    if isinstance(error, OSError) and error.strerror:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the path"
        where = f" {error.filename}" if error.filename else ""
        return f"error: {error.strerror}:{where}; {remedy}, or choose another folder; what was written before is kept"
    return f"error: {str(error).splitlines()[0]}"


def lead(entry: str, cfg: DictConfig | None) -> Any:
    """Carry out the job of an entry point, on as many processes as it asks for; None is nothing to do."""
    if cfg is None:
        return followers.lead(entry, None, 1)
    kind, asked = (cfg.trainer.accelerator, cfg.trainer.devices) if entry == "train" else (cfg.device, cfg.devices)
    return followers.lead(entry, cfg, processes.devices(kind, asked))


def check(cfg: DictConfig) -> None:
    """Refuse keys that no schema has, and values that are missing.

    Raises:
        ValueError: naming them.
    """
    _check_keys(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; give {missing[0]}=...")


def _check_keys(cfg: DictConfig, path: str = "") -> None:
    """Hydra lets `+key=value` add a key that the schema does not have, and advises it for one that is misspelt."""
    schema = OmegaConf.get_type(cfg)
    if schema is None or not is_dataclass(schema):
        return
    known = [field.name for field in fields(schema)]
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(f"there is no key {path}{key}; the keys are {', '.join(path + name for name in known)}")
        value = None if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key) else cfg[key]
        if isinstance(value, DictConfig):
            _check_keys(value, f"{path}{key}.")


def new_folder(parent: Path, name: str, leads: bool = True) -> Path:
    """A folder that did not exist before: `name` with the time of day, and a number if need be.

    Args:
        parent: where it is made.
        name: its first word.
        leads: whether this process makes it; the others are told where it is.
    """
    return Path(processes.agreed(str(_new_folder(parent, name)) if leads else None))


def _new_folder(parent: Path, name: str) -> Path:
    try:
        return files.new_folder(parent / f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    except OSError as error:
        raise ValueError(f"cannot write to {parent}: {error.strerror}; choose another output_dir") from error
