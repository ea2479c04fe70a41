"""Evaluation of a checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ddpm.commands.evaluation.base import Evaluation, mark
from ddpm.commands.output import new_folder
from ddpm.commands.sample_metrics import SampleMetrics
from ddpm.commands.subject import subject
from ddpm.metrics.base import Metric
from ddpm.setup import build
from ddpm.support.files import write_json
from ddpm.support.text import printable

COUNTS = ("batch_size", "n_samples", "nll.n_images", "rate_distortion.n_images", "ode.n_images")


def evaluate(cfg: Any) -> dict[str, Any]:
    """Compute the chosen metrics and write them to `metrics.json` in a new folder.

    Args:
        cfg: an `EvaluateConfig`.
    Returns:
        The content of the file: the value of every metric, and what defines it.
    """
    for name in COUNTS:
        value = OmegaConf.select(cfg, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    parts = chosen(cfg.metrics)
    of = subject(cfg)
    runs = {name: part.prepare(of) for name, part in parts.items()}
    result: dict[str, Any] = of.origin | {"data": of.config["data"], "data_of_training": of.of_training}
    parent, again = Path(cfg.output_dir or Path(cfg.ckpt).parent), "repeat the command with the metrics that are left"
    with new_folder(parent, "evaluate", of.leads, again) as folder:
        for name, run in runs.items():
            result[name] = run(folder)
            if of.leads:
                write_json(folder / "metrics.json", result)
        if of.leads:
            _show(result, parts)
    return result


def chosen(metrics: Mapping[str, Any]) -> dict[str, Evaluation]:
    """The parts of the result, by name; all metrics of samples are one part, `samples`.

    Raises:
        ValueError: there is no metric, or an option is wrong.
    """
    if not metrics:
        raise ValueError("metrics must name at least one metric, got none; choose for instance metrics=[fid,is,nll]")
    built = {name: build.instance(f"metrics.{name}", node) for name, node in metrics.items()}
    of_samples = {name: each for name, each in built.items() if isinstance(each, Metric)}
    parts = {name: each for name, each in built.items() if name not in of_samples}
    for name, part in parts.items():
        if not isinstance(part, Evaluation):
            raise ValueError(f"metrics.{name} must derive from Metric or Evaluation, got {type(part).__name__}")
    return parts | ({"samples": SampleMetrics(of_samples)} if of_samples else {})


def _show(result: dict[str, Any], parts: Mapping[str, Evaluation]) -> None:
    console = Console()
    sign = "±" if console.encoding.startswith("utf") else "+-"
    name = printable(os.path.basename(result["checkpoint"]))
    title = f"{name}, step {result['step']:,}, {result['weights']} weights"
    table = Table("metric", "value", "N", "of", title=title, title_justify="left")
    for name, part in parts.items():
        found = result[name]
        for row in part.rows:
            if row.value in found:
                error = found[row.spread] if row.spread else None
                spread = f" {sign} {error:.2g}" if error is not None else ""
                value = f"{found[row.value]:.4g}" + spread + mark(found, row.value)
                table.add_row(row.label, value, str(found[row.n]), part.of(found))
    if table.row_count:
        console.print(table)
    for name, part in parts.items():
        part.show(result[name], console)
    for warning in dict.fromkeys(each for name in parts for each in result[name].get("warnings", [])):
        print(f"warning: {warning}")
