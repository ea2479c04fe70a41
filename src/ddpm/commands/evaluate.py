"""Evaluation of a checkpoint."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ddpm.commands.evaluation import guidance, nll, ode, quality, rate_distortion
from ddpm.commands.output import new_folder
from ddpm.commands.subject import Subject, subject
from ddpm.metrics import fidelity
from ddpm.support.files import write_json
from ddpm.support.text import printable

PARTS: dict[str, Callable[[Subject], Callable[[Path], dict[str, Any]]]] = {
    "nll": nll.prepare,
    "rate_distortion": rate_distortion.prepare,
    "ode": ode.prepare,
    "guidance": guidance.prepare,
}
METRICS = (*fidelity.METRICS, *PARTS)


def evaluate(cfg: Any) -> dict[str, Any]:
    """Compute the metrics that are asked for, and write them to `metrics.json` in a new folder.

    Args:
        cfg: an `EvaluateConfig`.
    Returns:
        The content of the file: for every metric its value and what defines it.
    """
    unknown = [name for name in cfg.metrics if name not in METRICS]
    if unknown or not cfg.metrics:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    for name, value in (
        ("batch_size", cfg.batch_size),
        ("n_samples", cfg.n_samples),
        ("nll.n_images", cfg.nll.n_images),
        ("rate_distortion.n_images", cfg.rate_distortion.n_images),
        ("ode.n_images", cfg.ode.n_images),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    of = subject(cfg)
    parts = {name: prepare(of) for name, prepare in PARTS.items() if name in cfg.metrics}
    of_samples = [name for name in cfg.metrics if name in fidelity.METRICS]
    if of_samples:
        parts["samples"] = quality.prepare(of, of_samples)
    result: dict[str, Any] = of.origin | {"data": of.config["data"], "data_of_training": of.of_training}
    parent, again = Path(cfg.output_dir or Path(cfg.ckpt).parent), "repeat the command with the metrics that are left"
    with new_folder(parent, "evaluate", of.leads, again) as folder:
        for name, run in parts.items():
            result[name] = run(folder)
            if of.leads:
                write_json(folder / "metrics.json", result)
        if of.leads:
            _show(result)
    return result


ROWS = (  # part, key, label, key of the spread
    ("nll", "bits_per_dim", "bits/dim", "standard_error"),
    ("nll", "standard_error_times", "  error due to the times", None),
    ("nll", "prior", "  prior L_T", None),
    ("nll", "rate", "  rate L_1 + ... + L_T", None),
    ("nll", "distortion", "  distortion L_0", None),
    ("ode", "bits_per_dim", "bits/dim of the ODE", "standard_error"),
    ("samples", "fid", "FID", None),
    ("samples", "fid_floor", "  of real test images (floor)", None),
    ("samples", "is_mean", "IS", "is_std"),
    ("samples", "kid_mean", "KID", "kid_std"),
    ("samples", "precision", "precision", None),
    ("samples", "recall", "recall", None),
    ("samples", "accuracy", "accuracy of the classes asked for", None),
    ("samples", "fid_class_mean", "FID of one class, mean", None),
)


def _show(result: dict[str, Any]) -> None:
    console = Console()
    sign = "±" if console.encoding.startswith("utf") else "+-"
    title = partial(Table, title_justify="left")
    name = printable(os.path.basename(result["checkpoint"]))
    table = title(title=f"{name}, step {result['step']:,}, {result['weights']} weights")
    for column in ("metric", "value", "N", "of"):
        table.add_column(column)
    for part, key, label, spread in ROWS:
        found = result.get(part, {})
        if key in found:
            error = found[spread] if spread else None
            value = f"{found[key]:.4g}" + (f" {sign} {error:.2g}" if error is not None else "") + _mark(found, key)
            of = f"{found['features']} features" if part == "samples" else f"{found['split']} images"
            table.add_row(label, value, str(found["fid_floor_n" if key == "fid_floor" else "n"]), of)
    if table.row_count:
        console.print(table)
    if "nll" in result:
        print(result["nll"]["division"])
    if "rate_distortion" in result:
        curve = title(title=f"Rate-distortion, N = {result['rate_distortion']['n']}")
        for column in ("reverse steps", "rate (bits/dim)", "RMSE (0..255)"):
            curve.add_column(column, justify="right")
        for row in result["rate_distortion"]["table"]:
            curve.add_row(str(row["steps"]), f"{row['rate']:.5f}", f"{row['rmse']:.5f}")
        console.print(curve)
    if "guidance" in result:
        sweep = title(title=f"Guidance, N = {result['guidance']['n']}, {result['guidance']['features']} features")
        columns = list(result["guidance"]["table"][0])
        for column in columns:
            name = {"fid": "FID", "fid_class_mean": "FID of one class, mean"}.get(column, column)
            sweep.add_column(name + _mark(result["guidance"], column), justify="right")
        for row in result["guidance"]["table"]:
            sweep.add_row(*(f"{row[column]:.4g}" for column in columns))
        console.print(sweep)
    warnings = [each for part in ("samples", "guidance") for each in result.get(part, {}).get("warnings", [])]
    for warning in dict.fromkeys(warnings):
        print(f"warning: {warning}")


def _mark(found: dict[str, Any], key: str) -> str:
    """What is said beside a value that is of too few images."""
    return ", unreliable" if key in found.get("unreliable", []) else ""
