"""What the three entry points share."""

import functools
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm import checkpoint
from ddpm.diffusion import Diffusion


class UserError(CompactHydraException):
    """An error that its message explains; Hydra prints it without a stack trace unless HYDRA_FULL_ERROR=1."""


def explained(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Show a ValueError, a key that is unknown, and a value that is missing, as one line."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            _check_keys(cfg)
            missing = sorted(OmegaConf.missing_keys(cfg))
            if missing:
                raise ValueError(f"missing: {', '.join(missing)}; give {missing[0]}=...")
            return main(cfg)
        except (ValueError, OmegaConfBaseException) as error:
            raise UserError(f"error: {str(error).splitlines()[0]}") from error

    return wrapped


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


class Opened(NamedTuple):
    """A checkpoint that an entry point was given.

    Attributes:
        config: of the training run.
        model: in evaluation mode, on the device.
        seed: the one asked for, or that of the training run.
        step: optimizer steps that it was trained for.
    """

    config: dict[str, Any]
    model: Diffusion
    seed: int
    step: int


def opened(cfg: Any) -> Opened:
    """The checkpoint `cfg.ckpt`, with the weights, device and seed that are asked for."""
    if cfg.seed is not None and cfg.seed < 0:
        raise ValueError(f"seed must be at least 0, got {cfg.seed}")
    content = checkpoint.read(cfg.ckpt, cfg.trusted)
    model = checkpoint.model(content, cfg.weights).to(device(cfg.device))
    config = content["ddpm_config"]
    return Opened(config, model, config["seed"] if cfg.seed is None else cfg.seed, content["global_step"])


def device(name: str) -> torch.device:
    """The device called `name`; `auto` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} is not to be had here; use device=cpu, cuda or auto") from error


def new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist before: `name` with the time of day, and a number if need be."""
    stem = f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    for suffix in ("", *(f"_{i}" for i in range(1, 1000))):
        folder = parent / f"{stem}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"cannot write to {parent}: {error.strerror}; choose another output_dir") from error
        return folder
    raise ValueError(f"{parent} holds a thousand folders called {stem}; choose another output_dir")
