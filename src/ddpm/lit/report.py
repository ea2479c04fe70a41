"""What a training run prints before it starts and when it ends."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.datamodule import DataModule
from ddpm.lit.module import DDPM
from ddpm.setup.fused import replaced
from ddpm.setup.run_folder import LAST, METRICS, RESULTS, comparable
from ddpm.setup.shell import argument, command, shown
from ddpm.support.files import write_json
from ddpm.support.text import numbered


def _table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _choice(node: Any) -> str:
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    name = node["_target_"].rsplit(".", 2)[-2].rstrip("_")
    return name + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def summary(trainer: lightning.Trainer, module: DDPM, data: DataModule, config: Mapping[str, Any]) -> None:
    """Print what will be trained."""
    parameters = sum(p.numel() for p in module.diffusion.network.parameters())
    channels, height, width = data.source.shape
    accumulate = trainer.accumulate_grad_batches
    total_batch = data.batch_size * trainer.world_size * accumulate
    steps, images = trainer.max_steps, len(data.images("train"))
    kernels = "custom kernels" if replaced(module) else "torch's kernels"
    rows = {group: _choice(config[group]) for group in ("parameterization", "loss", "variance", "schedule")}
    rows |= {
        "time sampler": _choice(config["time_sampler"]),
        "conditioning": _choice(config["conditioning"]),
        "network": f"{config['network']['_target_'].rsplit('.', 1)[-1]}, {parameters:,} parameters",
        "data": f"{config['data']['_target_'].rsplit('.', 2)[-2]}, {images:,} + {len(data.images('test')):,} images, "
        f"{channels}x{height}x{width}, {data.source.levels} grey levels",
        "training": f"{steps:,} steps of {total_batch} images ({steps * total_batch / images:.1f} passes), "
        f"{trainer.world_size} process(es) on {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, "
        f"precision {trainer.precision}, {kernels} (speed={config['speed']})",
    }
    if data.source.classes:
        rows["classes"] = f"{len(data.source.classes)}: {escape(numbered(data.source.classes))}"
    _table("Experiment", rows)
    for note in data.source.notes:
        print(f"data: {note}")
    print(f"folder: {shown(trainer.default_root_dir)}")


def labels(trainer: lightning.Trainer) -> dict[str, str]:
    """What to print for each metric."""
    found = {"train/loss": "training loss", "val/loss": "validation loss (averaged weights)"}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        found |= callback.labels if isinstance(callback, Periodic) else {}
    return found | {"images_per_second": "training images/s", "seconds": "training time (s)"}


def results(trainer: lightning.Trainer, module: DDPM, config: Mapping[str, Any]) -> None:
    """Print the last value of each metric and where to look, and write the values with the configuration."""
    values = {name: float(value) for name, value in trainer.callback_metrics.items()} | module.results
    values.pop("step", None)
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"there are no results: {', '.join(wrong)}; lower optimizer.lr, or raise warmup_steps")
    content = {
        "steps": trainer.global_step,
        "metrics": values,
        "warnings": module.warnings,
        "config": comparable(config),
    }
    write_json(Path(trainer.default_root_dir) / RESULTS, content)
    named = labels(trainer)
    named |= {name: name for name in sorted(set(values) - set(named))}
    rows = {
        label: f"{values[name]:.4g}" + (", unreliable" if name in module.unreliable else "")
        for name, label in named.items()
        if name in values
    }
    folder = Path(os.path.relpath(trainer.default_root_dir))
    grids = sorted((folder / "samples").glob("*.png"))
    found = {"checkpoint": folder / LAST, "samples": grids[-1] if grids else None}
    found |= {"metrics": folder / METRICS, "results": folder / RESULTS}
    _table(f"Results after {trainer.global_step:,} steps", rows)
    for warning in module.warnings:
        print(f"warning: {warning}")
    for name, path in found.items():
        if path is not None and path.exists():
            print(f"{name}: {shown(path)}")
    if (folder / LAST).exists():
        metrics = shlex.quote("metrics=[fid,is,nll]")
        print(f"evaluate: {command('evaluate', argument('ckpt', folder / LAST), metrics)}")
