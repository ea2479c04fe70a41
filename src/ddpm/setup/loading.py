"""Load a model from a checkpoint."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddpm.model.diffusion import Diffusion
from ddpm.parallel import processes
from ddpm.setup import build
from ddpm.setup.entries import fitting, walk
from ddpm.setup.run_folder import found
from ddpm.setup.targets import BASES, STORED, check_targets
from ddpm.support.text import printable

PREFIXES = {"ema": "ema.network.", "raw": "diffusion.network."}
CONTENT = {
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision"),
    *("epoch", "global_step", "pytorch-lightning_version", "ddpm_config", "unlogged", "optimizer", "wandb_id"),
}
"""The keys that train.py writes into a checkpoint; Lightning would act on others."""


def read(path: str | Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only, with its configuration checked.

    Args:
        path: a file written by train.py, or a run folder, for its last.ckpt.
        trusted: packages besides ddpm that its configuration may name.
    Returns:
        The content, with the file's SHA-256 in hexadecimal digits as `sha256`.
    Raises:
        ValueError: the file is missing, damaged, not from ddpm, or names a target that is not allowed.
    """
    path = found(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; training writes last.ckpt into its run folder under runs/")
    try:
        with path.open("rb") as file:  # one handle, so that hash and content are of one file even if it is replaced
            before = os.fstat(file.fileno()).st_mtime_ns
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            unchanged = os.fstat(file.fileno()).st_mtime_ns == before
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values"
        ) from error
    if not unchanged:
        raise ValueError(f"{path} was written to while it was read; try again")
    return checked(content, path, trusted) | {"sha256": sha256}


def read_together(path: str | Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """`read` on every process of a job, making sure that all read the same file.

    Raises:
        ValueError: as in `read`, or the file was replaced meanwhile.
    """
    content = read(path, trusted)
    if processes.most(int(content["sha256"] != processes.agreed(content["sha256"]))):
        raise ValueError(f"{path} was replaced while the processes read it; try again")
    return content


def checked(content: Any, path: str | Path, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """The content of the file `path`, after checking its structure and the targets that it names.

    Raises:
        ValueError: it is not a valid checkpoint, or names a target that is not allowed.
    """
    if not isinstance(content, dict) or not isinstance(content.get("ddpm_config"), dict):
        raise ValueError(f"{path} is not a ddpm checkpoint; give a file written by train.py, such as last.ckpt")
    try:
        for _ in walk(content):
            pass
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    config = content["ddpm_config"]
    config.setdefault("conditioning", {"_target_": "ddpm.conditioning.none.Unconditional"})
    strange = [*sorted(map(str, {*content} - CONTENT)), *sorted(f"ddpm_config.{key}" for key in {*config} - STORED)]
    if strange:
        raise ValueError(f"{path} holds {printable(strange[0])}, which ddpm never writes; it is refused")
    check_targets(config, trusted)
    if not ({*config} >= STORED and isinstance(content.get("state_dict"), dict) and _is_plausible(content)):
        raise ValueError(f"{path} is not a complete ddpm checkpoint; give a file written by train.py")
    return content


def _is_plausible(content: dict[str, Any]) -> bool:
    """Whether the entries that are not built from a target have the expected types."""
    config = content["ddpm_config"]
    image, evaluation = config["image"], config["evaluation"]
    if not all(isinstance(each, dict) for each in (image, evaluation, *(config[group] for group in BASES))):
        return False
    names, kept = image.get("class_names", []), image.get("digest", {})
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return False
    if not (isinstance(kept, dict) and all(_is_fingerprint(each) for each in kept.values())):
        return False
    shape, n_samples = image.get("shape"), evaluation.get("n_samples")
    counts = [content.get("global_step"), config["seed"], config["total_batch"], image.get("levels")]
    counts += [image.get("classes", 0), 0 if n_samples is None else n_samples]
    counts += shape if isinstance(shape, list) and len(shape) == 3 else [None]
    texts = [evaluation.get("features"), content.get("wandb_id")]
    return all(type(each) is int and each >= 0 for each in counts) and all(
        isinstance(each, str | None) for each in texts
    )


def _is_fingerprint(kept: Any) -> bool:
    kinds = {"n": int, "of": str, "sha256": str}
    return isinstance(kept, dict) and {key: type(value) for key, value in kept.items()} == kinds


def model(content: dict[str, Any], weights: str = "ema") -> Diffusion:
    """The model of a checkpoint, in evaluation mode.

    Args:
        content: from `read`.
        weights: `ema` (averaged) or `raw` (as trained).
    Raises:
        ValueError: `weights` has another value, or the weights do not fit the configuration.
    """
    if weights not in PREFIXES:
        raise ValueError(f"weights must be ema or raw, got {weights!r}")
    config = content["ddpm_config"]
    image = config["image"]
    diffusion = build.diffusion(config, tuple(image["shape"]), image["levels"], image.get("classes", 0))
    prefix = PREFIXES[weights]
    entries = content["state_dict"].items()
    state = {key.removeprefix(prefix): value for key, value in entries if str(key).startswith(prefix)}
    try:
        diffusion.network.load_state_dict(fitting(state, diffusion.network.state_dict(), "the network"))
    except ValueError as error:
        raise ValueError(
            f"the {weights} weights do not fit the network that the checkpoint describes: {error}"
        ) from error
    return diffusion.eval().requires_grad_(False)


def load(path: str | Path, weights: str = "ema", trusted: Sequence[str] = ()) -> Diffusion:
    """Load the model of a checkpoint, ready for prediction, p(x_{t-1} | x_t) and sampling.

    Args:
        path: a file written by train.py, or a run folder, for its last.ckpt.
        weights: `ema` (averaged) or `raw` (as trained).
        trusted: packages besides ddpm that its configuration may name.
    Raises:
        ValueError: the file is missing, damaged, not from ddpm, or names a target that is not allowed.
    """
    return model(read(path, trusted), weights)
