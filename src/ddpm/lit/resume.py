"""What a run takes from the checkpoint that it resumes: entries that fit what is configured, and no others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from ddpm.data.images import not_compared, same
from ddpm.data.source import Source
from ddpm.lit.module import DDPM, class_name
from ddpm.parallel import processes
from ddpm.setup import build, loading
from ddpm.setup.entries import brief, fitting, walk
from ddpm.setup.targets import MODEL

STEPS = "epoch_loop.automatic_optimization.optim_progress"
"""Where Lightning counts the steps of the optimizer."""


def resume(config: Mapping[str, Any], module: DDPM, trainer: lightning.Trainer) -> dict[str, Any]:
    """Let the trainer resume the checkpoint, which must have been trained as is configured; its content.

    Where the data lie may differ, and what a run may change on its way: the optimizer's options, the length of the run,
    its speed, and what is observed of it.
    """
    ckpt, here = config["ckpt"], module.config
    assert here is not None
    content = loading.read_together(ckpt, trusted=_packages(config))
    trained = content["ddpm_config"]

    def comparable(stored: dict[str, Any], key: str) -> Any:
        if key != "data":
            return stored.get(key)
        return {name: value for name, value in stored["data"].items() if name not in ("root", "memory_gb")}

    keys = (*MODEL, "loss", "time_sampler", "data", "seed", "total_batch")
    differing = [key for key in keys if comparable(trained, key) != comparable(here, key)]
    if differing:
        first = differing[0]
        raise ValueError(
            f"ckpt={ckpt} was trained with other settings of {', '.join(differing)} "
            f"({first}: {brief(trained.get(first))}, here {here[first]}); repeat the options of that run"
        )
    optimizer = class_name(module.configure_optimizers()["optimizer"])
    if content.get("optimizer", optimizer) != optimizer:
        raise ValueError(
            f"ckpt={ckpt} was trained by another optimizer ({brief(content['optimizer'])}, here {optimizer}), and what "
            f"one has learned of the weights means nothing to another; repeat the options of that run"
        )
    if content["global_step"] >= trainer.max_steps:
        raise ValueError(
            f"ckpt={ckpt} has been trained for {content['global_step']} steps already; "
            f"give a trainer.max_steps above that"
        )
    try:
        trainer.strategy.checkpoint_io.content = resumable(content, module, trainer)  # type: ignore[attr-defined]
    except ValueError as error:
        raise ValueError(f"ckpt={ckpt} cannot be resumed: {error}") from error
    return content


def check_data(config: Mapping[str, Any], source: Source, before: Any, digest: dict[str, Any]) -> None:
    """Refuse to resume on other data than the checkpoint's, unless that is asked for; say if that cannot be told."""
    if config["other_data"]:
        return
    build.check_classes(source, before)
    for split, here in digest.items():
        kept = before.get("digest", {}).get(split)
        alike = same(kept, here)
        if alike is False:
            raise ValueError(
                f"ckpt={config['ckpt']} was trained with other {split} images ({kept['n']:,} then, {here['n']:,} here; "
                f"pixels, labels or files differ); give it those, or go on with these by other_data=true"
            )
        if alike is None and processes.share().rank == 0:
            print(f"data: {not_compared(split)}")


def _packages(config: Any) -> list[str]:
    """The packages that the user's own configuration names: the checkpoint may name them too."""
    if isinstance(config, Mapping):
        here = [str(value).split(".")[0] for key, value in config.items() if key == "_target_"]
        return here + [package for value in config.values() for package in _packages(value)]
    return []


def resumable(content: dict[str, Any], module: DDPM, trainer: lightning.Trainer) -> dict[str, Any]:
    """What Lightning is to restore: each entry of the kind of the one that it replaces, every number finite.

    Args:
        content: from `loading.read`.
        module: as configured.
        trainer: as configured.
    Raises:
        ValueError: naming an entry that is missing, damaged, or of another network or optimizer.
    """
    parts: dict[str, Any] = {
        "pytorch-lightning_version": lightning.__version__,  # as these entries are arranged
        "global_step": content["global_step"],
        "loops": {"fit_loop": _progress(content, trainer)},
        "callbacks": _states(content, trainer),
        "unlogged": fitting(content.get("unlogged"), module.unlogged, "unlogged"),
        "state_dict": fitting(content["state_dict"], module.state_dict(), "state_dict"),
        "optimizer_states": [{"state": _learned(content, module, trainer.strategy.root_device)}],
    }
    precision = trainer.precision_plugin
    name, scaler = type(precision).__qualname__, precision.state_dict()
    if scaler and name in content:
        parts[name] = fitting(content[name], scaler, name)
    return parts


def _dict(found: Any, path: str) -> dict[Any, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{path} is missing or damaged")
    return found


def _learned(content: dict[str, Any], module: DDPM, device: torch.device) -> dict[int, Any]:
    """What the optimizer has learned of each weight."""
    found = content.get("optimizer_states")
    if not isinstance(found, list) or len(found) != 1:
        raise ValueError("optimizer_states is missing or damaged")
    state = _dict(_dict(found[0], "optimizer_states.0").get("state"), "optimizer_states.0.state")
    names = [name for name, _ in module.diffusion.network.named_parameters()]
    if not {*state} <= {*range(len(names))}:
        raise ValueError(f"optimizer_states.0.state is of other weights than the {len(names)} of the network")
    fresh: dict[Any, Any] = {}
    learned = {}
    for index, weight in enumerate(module.diffusion.network.parameters()):
        kind = weight.shape, weight.dtype
        if kind not in fresh:
            fresh[kind] = _after_one_step(module, nn.Parameter(torch.zeros_like(weight, device=device)))
        if index in state:
            learned[index] = fitting(state[index], fresh[kind], f"optimizer_states.0.state.{index}")
        elif fresh[kind] and _has_moved(content["state_dict"], names[index]):
            raise ValueError(f"optimizer_states.0.state.{index} is missing")
    return learned


def _after_one_step(module: DDPM, weight: nn.Parameter) -> dict[str, Any]:
    """What the optimizer keeps of a weight."""
    weight.grad = torch.zeros_like(weight)
    optimizer = module.optimizer([weight])
    optimizer.step()
    return optimizer.state[weight]


def _has_moved(weights: dict[str, Any], name: str) -> bool:
    """Whether a weight differs from its average, as one does that is trained."""
    return not torch.equal(weights[f"diffusion.network.{name}"], weights[f"ema.network.{name}"])


def _progress(content: dict[str, Any], trainer: lightning.Trainer) -> dict[str, Any]:
    """Lightning's counts."""
    found = _dict(_dict(content.get("loops"), "loops").get("fit_loop"), "loops.fit_loop")
    counts = {
        key: fitting(found.get(key, fresh), fresh, f"loops.fit_loop.{key}") if fresh else {}
        for key, fresh in trainer.fit_loop.state_dict().items()
    }
    counted = counts[STEPS]["optimizer"]["step"]["total"]["completed"]
    if counted != content["global_step"]:
        raise ValueError(f"global_step is {content['global_step']}, but {counted} steps are counted in loops")
    return counts


def _states(content: dict[str, Any], trainer: lightning.Trainer) -> dict[str, Any]:
    """Of the callbacks that there are; a path in them leads into the folder that they write to, or nowhere."""
    found = _dict(content.get("callbacks", {}), "callbacks")
    states = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        if key in found and (fresh := callback.state_dict()):
            states[key] = fitting(found[key], fresh, f"callbacks.{key}", loose=True)
            for path, name, value in walk(states[key]):
                texts = [text for text in (name, value) if isinstance(text, str)]
                if any("::" in text or "://" in text or ".." in Path(text).parts for text in texts):
                    raise ValueError(f"callbacks.{key}.{path} leads out of the folder of the run")
    return states
