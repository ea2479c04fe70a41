"""From a checkpoint to the model."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ddpm.diffusion import Diffusion

PREFIXES = {"ema": "ema.network.", "raw": "diffusion.network."}
CONTENT = {
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision"),
    *("epoch", "global_step", "pytorch-lightning_version", "ddpm_config", "unlogged", "wandb_id"),
}
"""What train.py writes into a checkpoint; Lightning acts upon other keys."""


def read(path: str | Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint, tensors and plain values alone, its configuration checked.

    Args:
        path: a file written by train.py.
        trusted: packages that its configuration may name besides ddpm.
    Raises:
        ValueError: the file is missing, damaged, not of ddpm, or names what it may not.
    """
    from ddpm.config import STORED, check_targets

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; training writes last.ckpt into its run folder under runs/")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("ddpm_config"), dict):
        raise ValueError(f"{path} is not a checkpoint of ddpm; give a file written by train.py, such as last.ckpt")
    config = content["ddpm_config"]
    config.setdefault("conditioning", {"_target_": "ddpm.conditioning.none.Unconditional"})
    strange = sorted(map(str, {*content} - CONTENT)) + sorted(f"ddpm_config.{key}" for key in {*config} - STORED)
    if strange:
        raise ValueError(f"{path} holds {strange[0]}, which ddpm never writes; it is refused")
    check_targets(config, trusted)
    if not ({*config} >= STORED and isinstance(content.get("state_dict"), dict) and _is_plausible(config)):
        raise ValueError(f"{path} is not a whole checkpoint of ddpm; give a file written by train.py")
    return content


def _is_plausible(config: dict[str, Any]) -> bool:
    """Whether what is not built from a target has the types that it should have."""
    image, evaluation = config["image"], config["evaluation"]
    if not (isinstance(image, dict) and isinstance(evaluation, dict) and {"shape", "levels"} <= {*image}):
        return False
    names, kept = image.get("class_names", []), image.get("digest", {})
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return False
    if not (isinstance(kept, dict) and all(_is_fingerprint(each) for each in kept.values())):
        return False
    shape = image["shape"]
    numbers = [config["seed"], image["levels"], image.get("classes", 0), *(shape if isinstance(shape, list) else [])]
    return len(numbers) == 6 and all(isinstance(number, int) and number >= 0 for number in numbers)


def _is_fingerprint(kept: Any) -> bool:
    kinds = {"n": int, "of": str, "sha256": str}
    return isinstance(kept, dict) and {key: type(value) for key, value in kept.items()} == kinds


def model(content: dict[str, Any], weights: str = "ema") -> "Diffusion":
    """The model of a checkpoint, in evaluation mode.

    Args:
        content: from `read`.
        weights: `ema`, the averaged ones, or `raw`, those that were trained.
    Raises:
        ValueError: another name, or weights that do not fit the configuration.
    """
    from ddpm import build

    if weights not in PREFIXES:
        raise ValueError(f"weights must be ema or raw, got {weights!r}")
    config = content["ddpm_config"]
    image = config["image"]
    diffusion = build.diffusion(config, tuple(image["shape"]), image["levels"], image.get("classes", 0))
    prefix = PREFIXES[weights]
    state = {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
    try:
        diffusion.network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the {weights} weights do not fit the network that the checkpoint describes") from error
    return diffusion.eval().requires_grad_(False)


def load(path: str | Path, weights: str = "ema", trusted: Sequence[str] = ()) -> "Diffusion":
    """The model of a checkpoint, ready to predict, to read p(x_{t-1} | x_t), and to sample.

    Args:
        path: a file written by train.py.
        weights: `ema`, the averaged ones, or `raw`, those that were trained.
        trusted: packages that its configuration may name besides ddpm.
    Raises:
        ValueError: the file is missing, damaged, not of ddpm, or names what it may not.
    """
    return model(read(path, trusted), weights)
