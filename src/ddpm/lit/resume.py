"""What a resumed run takes from its checkpoint: only entries that fit the configuration."""

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
"""Where Lightning counts optimizer steps."""


def resume(config: Mapping[str, Any], module: DDPM, trainer: lightning.Trainer) -> dict[str, Any]:
    """Prepare the trainer to resume a checkpoint of the same configuration; returns the checkpoint's content.

    The location of the data may differ, and so may the optimizer's options, the length of the run, its speed, callbacks
    and loggers.
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
            f"ckpt={ckpt} was trained with another optimizer ({brief(content['optimizer'])}, here {optimizer}), whose "
            f"state cannot be reused; repeat the options of that run"
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
    """Reject data that differs from the checkpoint's unless other_data=true; say if they cannot be compared."""
    if config["other_data"]:
        return
    build.check_classes(source, before)
    for split, here in digest.items():
        kept = before.get("digest", {}).get(split)
        alike = same(kept, here)
        if alike is False:
            raise ValueError(
                f"ckpt={config['ckpt']} was trained with other {split} images ({kept['n']:,} then, {here['n']:,} here; "
                f"pixels, labels or files differ); use the same images, or allow these with other_data=true"
            )
        if alike is None and processes.share().rank == 0:
            print(f"data: {not_compared(split)}")


def _packages(config: Any) -> list[str]:
    """The packages named in the user's configuration, which the checkpoint may name too."""
    if isinstance(config, Mapping):
        here = [str(value).split(".")[0] for key, value in config.items() if key == "_target_"]
        return here + [package for value in config.values() for package in _packages(value)]
    return []


def resumable(content: dict[str, Any], module: DDPM, trainer: lightning.Trainer) -> dict[str, Any]:
    """The entries that Lightning restores, each of the same kind as the one it replaces, with finite numbers only.

    Args:
        content: as returned by `loading.read`.
        module: as configured.
        trainer: as configured.
    Raises:
        ValueError: naming an entry that is missing, damaged, or belongs to another network or optimizer.
    """
    parts: dict[str, Any] = {
        "pytorch-lightning_version": lightning.__version__,  # these entries have its format
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
    """The optimizer's state for each weight."""
    found = content.get("optimizer_states")
    if not isinstance(found, list) or len(found) != 1:
        raise ValueError("optimizer_states is missing or damaged")
    state = _dict(_dict(found[0], "optimizer_states.0").get("state"), "optimizer_states.0.state")
    names = [name for name, _ in module.diffusion.network.named_parameters()]
    if not {*state} <= {*range(len(names))}:
        raise ValueError(f"optimizer_states.0.state does not match the {len(names)} weights of the network")
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
    """The optimizer's state for a weight after one step."""
    weight.grad = torch.zeros_like(weight)
    optimizer = module.optimizer([weight])
    optimizer.step()
    return optimizer.state[weight]


def _has_moved(weights: dict[str, Any], name: str) -> bool:
    """Whether a weight differs from its average, as a trained weight does."""
    return not torch.equal(weights[f"diffusion.network.{name}"], weights[f"ema.network.{name}"])


def _progress(content: dict[str, Any], trainer: lightning.Trainer) -> dict[str, Any]:
    """Lightning's progress counts."""
    found = _dict(_dict(content.get("loops"), "loops").get("fit_loop"), "loops.fit_loop")
    counts = {
        key: fitting(found.get(key, fresh), fresh, f"loops.fit_loop.{key}") if fresh else {}
        for key, fresh in trainer.fit_loop.state_dict().items()
    }
    counted = counts[STEPS]["optimizer"]["step"]["total"]["completed"]
    if counted != content["global_step"]:
        raise ValueError(f"global_step is {content['global_step']}, but loops counts {counted} steps")
    return counts


def _states(content: dict[str, Any], trainer: lightning.Trainer) -> dict[str, Any]:
    """States of the configured callbacks; a path in them must not lead out of the run's folder."""
    found = _dict(content.get("callbacks", {}), "callbacks")
    states = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        if key in found and (fresh := callback.state_dict()):
            states[key] = fitting(found[key], fresh, f"callbacks.{key}", loose=True)
            for path, name, value in walk(states[key]):
                texts = [text for text in (name, value) if isinstance(text, str)]
                if any("::" in text or "://" in text or ".." in Path(text).parts for text in texts):
                    raise ValueError(f"callbacks.{key}.{path} leads out of the run's folder")
    return states
