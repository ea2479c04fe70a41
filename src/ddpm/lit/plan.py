"""The plan of a training run: its configuration, checked and resolved before anything is built."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from ddpm.lit.devices import devices
from ddpm.parallel import processes
from ddpm.setup import build, speed

GPU = ("cuda", "gpu")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
COUNTS = ("max_steps", "num_nodes", "accumulate_grad_batches", "log_every_n_steps", "val_check_interval")
FIXED = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
"""Trainer arguments that are the same for every run."""
BUILT = (
    "callbacks",
    "logger",
    "strategy",
    "enable_progress_bar",
    "enable_checkpointing",
    "default_root_dir",
    "plugins",
)
"""Trainer arguments that are built from other config groups."""


@dataclass(frozen=True)
class Plan:
    """A checked run before it is built.

    Attributes:
        config: the configuration as plain values, without callbacks that are set to null.
        trainer: plain arguments of Lightning's Trainer, including those chosen automatically.
        total_batch: images per optimizer step, over all processes.
    """

    config: Mapping[str, Any]
    trainer: Mapping[str, Any]
    total_batch: int


def planned(config: Mapping[str, Any]) -> Plan:
    """Check a configuration, given as plain values.

    Raises:
        ValueError: naming what does not fit, and what to do.
    """
    config = dict(config)
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2^32, got {config['seed']}")
    config["callbacks"] = {name: node for name, node in config["callbacks"].items() if node is not None}
    known = [name for name in build.options("callbacks") if name != "default"]
    for name, node in config["callbacks"].items():
        if "_target_" not in node and name not in known:
            raise ValueError(f"callbacks.{name} has no _target_; the callbacks are {', '.join(known)}")
    trainer = _trainer(config)
    total_batch = config["batch_size"] * processes.share().world * trainer["accumulate_grad_batches"]
    return Plan(config, trainer, total_batch)


def _trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain arguments of the Trainer."""
    typed = {name: value for name, value in config["trainer"].items() if name != "precision"}  # checked below
    build.check_types("trainer", OmegaConf.create(typed))
    options: dict[str, Any] = {"max_steps": -1, "num_nodes": 1, "accumulate_grad_batches": 1}
    options |= {"accelerator": "auto", "devices": "auto"} | config["trainer"]
    for name in COUNTS:
        value = options.get(name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"trainer.{name} must be at least 1, got {value}; training is counted in steps")
    for name in options:
        if name in FIXED or name in BUILT:
            raise ValueError(
                f"trainer.{name} is set by ddpm itself; set the length of a run with trainer.max_steps, its output "
                f"with the groups callbacks and logger, and multi-process training with the group strategy"
            )
    if options["accelerator"] == "auto":
        options["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = speed.precision(config["speed"], torch.device("cuda" if options["accelerator"] in GPU else "cpu"))
    options["precision"] = precision = str(options.get("precision") or chosen)
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision}: the weights and their average "
            f"are kept in float32"
        )
    if options["accelerator"] == "mps":
        raise ValueError("trainer.accelerator=mps has no float64, which the tables need; use trainer.accelerator=cpu")
    if isinstance(options.get("val_check_interval"), int):
        options["val_check_interval"] *= options["accumulate_grad_batches"]  # Lightning counts batches
    if config["strategy"].get("static_graph") and options["accumulate_grad_batches"] > 1:
        raise ValueError(
            "strategy.static_graph=true does not work with trainer.accumulate_grad_batches="
            f"{options['accumulate_grad_batches']}; use strategy.static_graph=false"
        )
    _match_processes(options)
    return options | FIXED


def _match_processes(options: dict[str, Any]) -> None:
    """Resolve `devices`, and check that it matches the number of processes."""
    world, nodes = processes.share().world, options["num_nodes"]
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if world > 1 else 1
    if options["devices"] == "auto":
        options["devices"] = local
    wanted = devices(options["accelerator"], options["devices"])
    if wanted * nodes != world:
        raise ValueError(
            f"trainer.devices={options['devices']} and trainer.num_nodes={nodes} need {wanted * nodes} processes, but "
            f"{world} are running; start several nodes with torchrun or Slurm, one process for each device"
        )
