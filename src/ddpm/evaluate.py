"""Evaluation of a checkpoint."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ddpm import cli
from ddpm.command import shown
from ddpm.evaluation import guidance, nll, ode, quality, rate_distortion
from ddpm.files import written
from ddpm.metrics import fidelity
from ddpm.subject import Subject, subject

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
    folder = cli.new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "evaluate", of.leads)

    result: dict[str, Any] = {
        "checkpoint": os.path.basename(cfg.ckpt),
        "step": of.step,
        "weights": cfg.weights,
        "seed": of.seed,
        "data": of.config["data"],
        "data_of_training": of.of_training,
    }
    for name, run in parts.items():
        result[name] = run(folder)
        if of.leads:
            with written(folder / "metrics.json") as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n")
    if of.leads:
        _show(result)
        print(f"written: {', '.join(sorted(path.name for path in folder.iterdir()))} in {shown(folder)}")
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
    title = partial(Table, title_justify="left")
    table = title(title=f"{result['checkpoint']}, step {result['step']:,}, {result['weights']} weights")
    for column in ("metric", "value", "N", "of"):
        table.add_column(column)
    for part, key, label, spread in ROWS:
        found = result.get(part, {})
        if key in found:
            error = found[spread] if spread else None
            value = f"{found[key]:.4g}" + (f" ± {error:.2g}" if error is not None else "")
            of = f"{found['features']} features" if part == "samples" else f"{found['split']} images"
            table.add_row(label, value, str(found["fid_floor_n" if key == "fid_floor" else "n"]), of)
    console = Console()
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
            sweep.add_column(
                {"fid": "FID", "fid_class_mean": "FID of one class, mean"}.get(column, column), justify="right"
            )
        for row in result["guidance"]["table"]:
            sweep.add_row(*(f"{row[column]:.4g}" for column in columns))
        console.print(sweep)
    for warning in result.get("samples", {}).get("warnings", []):
        print(f"warning: {warning}")
