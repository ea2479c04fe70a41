"""Progressive coding and generation, Ho et al. 2020, section 4.3."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ddpm.commands import plots
from ddpm.commands.evaluation.base import Evaluation
from ddpm.commands.evaluation.nll import chain, choices, clip, full_bound
from ddpm.commands.subject import Subject
from ddpm.generation import trajectory
from ddpm.likelihood.progressive_coding import rate_distortion
from ddpm.sampler.base import Sampler
from ddpm.support.bars import Steps
from ddpm.support.files import write_csv

ROWS = 10
"""Rows of the printed table; the CSV file has all."""
FRACTIONS = (1.0, 0.75, 0.5, 0.25)
SAMPLES = 8
PREDICTIONS = 11


class RateDistortion(Evaluation):
    """Computes and draws the rate-distortion curve, and draws progressive generation."""

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        cfg = subject.cfg
        model = chain(subject)
        n = subject.count(cfg.rate_distortion.n_images)
        clip(subject)
        sampler = subject.sampler

        def run(folder: Path) -> dict[str, Any]:
            curve = rate_distortion(full_bound(subject, n))
            T = model.T
            rows = [
                {"steps": steps, "t": T - steps + 1, "rate": rate, "rmse": rmse}
                for steps, rate, rmse in zip(*(each.tolist() for each in curve), strict=True)
            ]
            if subject.leads:
                pictures = {"rate_distortion.png": plots.rate_distortion(curve), **_pictures(subject, sampler)}
                write_csv(folder / "rate_distortion.csv", rows)
                for name, figure in pictures.items():
                    plots.save(figure, folder / name)
            table = sorted({math.ceil(T * i / ROWS) for i in range(1, ROWS + 1)}, reverse=True)
            return {
                "table": [rows[steps - 1] for steps in table],
                "n": n,
                **choices(subject, model),
                "rmse": "root of the mean over images and dimensions, of x^_0 clipped to [-1, 1], on a scale of 0..255",
            }

        return run

    def show(self, found: dict[str, Any], console: Console) -> None:
        table = Table(title=f"Rate-distortion, N = {found['n']}", title_justify="left")
        for column in ("reverse steps", "rate (bits/dim)", "RMSE (0..255)"):
            table.add_column(column, justify="right")
        for row in found["table"]:
            table.add_row(str(row["steps"]), f"{row['rate']:.5f}", f"{row['rmse']:.5f}")
        console.print(table)


def _pictures(subject: Subject, sampler: Sampler) -> dict[str, Figure]:
    """Figures of progressive generation, by file name."""
    model, shape = subject.model, subject.shape
    length = sampler.chain(model).T
    noise = subject.noise(range(SAMPLES))
    with Steps("progressive generation", round(length * (2 + sum(FRACTIONS)))) as steps:
        along = trajectory.predictions(model, sampler, noise, PREDICTIONS, steps)
        sharing = trajectory.sharing(model, sampler, shape, subject.seed, FRACTIONS, SAMPLES, steps)
    times = sampler.chain(model).process.times
    shown = [f"{float(times[step + 1]):g}" for step in trajectory.evenly(length - 1, PREDICTIONS)]
    pictures = {
        "predictions.png": (along, shown[:-1] + ["sample"], None, r"$\hat{x}_0$ predicted from $x_t$, t ="),
        "sharing.png": (
            sharing,
            ["$x_t$", *[""] * SAMPLES],
            [f"{float(times[max(1, round(f * length))]):g}" for f in FRACTIONS],
            "samples that share $x_t$, t at the left",
        ),
    }
    return {
        name: plots.tiles(subject.grey(tiles), columns, rows, title)
        for name, (tiles, columns, rows, title) in pictures.items()
    }
