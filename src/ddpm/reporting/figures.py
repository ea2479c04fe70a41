"""Curves of cells, as plotly.js draws them.

The mean over seeds has a band of its standard error, and each seed is a thin line.
"""

import base64
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm.reporting.cells import Cell
from ddpm.reporting.contents import Array, Curve
from ddpm.reporting.quantities import COUNTS, QUANTITIES, quantity
from ddpm.reporting.runs import Run

COLOURS = (
    *("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2"),
    *("#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0"),
)
"""Observable's ten, legible on white and on black."""
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_POINTS = 300
FEW = 20
"""Points up to which each is marked."""
FIRST = ("train/loss", "val/loss", "bits_per_dim", "fid")


@dataclass(frozen=True)
class Plot:
    """Curves with the same axes.

    Attributes:
        title: what is plotted.
        note: what to say below it.
        variants: a figure of Plotly for each horizontal axis, `steps` or `time`.
        scale: `chosen` by the reader, `linear`, or `log` on both axes.
        spread: the largest value over the smallest, on a logarithmic scale.
        main: whether it is shown without being asked for.
    """

    title: str
    note: str
    variants: Mapping[str, Any]
    scale: str
    spread: float
    main: bool = True


def style(index: int) -> tuple[str, str]:
    """Colour and dash of a cell."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def training(cells: Sequence[Cell]) -> list[Plot]:
    """What was logged against the step, and against the training time."""
    runs = [run for cell in cells for run in cell.runs]
    long = {name for run in runs for name, curve in run.curves.items() if len(curve.key) > 1} - COUNTS - {"seconds"}
    known = [name for name in dict.fromkeys((*FIRST, *QUANTITIES)) if name in long]
    plots = []
    for name in [*known, *sorted(long - {*known})]:

        def by_step(run: Run, name: str = name) -> Curve | None:
            return run.curves.get(name)

        def by_time(run: Run, name: str = name) -> Curve | None:
            curve = run.curves.get(name)
            seconds = None if curve is None else run.seconds(curve.key)
            return None if curve is None or seconds is None else curve._replace(x=seconds / 60)

        of = quantity(name)
        axes = {"steps": ("step", by_step), "time": ("training time (minutes)", by_time)}
        plots.append(plot(of.label, "", cells, axes, "chosen", of.main and name != "images_per_second"))
    return plots


def evaluated(cells: Sequence[Cell]) -> list[Plot]:
    """What evaluate.py computed: curves from its files, and FID against N and against the number of steps."""
    rate, terms = "RMSE (0..255) of x^_0 against the rate received", "bits/dim against t; the distortion at t = 1"
    kinds = (
        ("rate_distortion", "Rate and distortion", "rate (bits/dim)", rate, "linear"),
        ("terms", "Terms of the bound", "t", terms, "log"),
        ("guidance", "FID against guidance", "guidance w", "all classes, with the same noise for each w", "linear"),
    )
    plots = []
    for name, title, x, note, scale in kinds:

        def table(run: Run, name: str = name) -> Curve | None:
            return run.tables.get(name)

        plots.append(plot(title, note, cells, {"steps": (x, table)}, scale))
    runs = [run for cell in cells for run in cell.runs]
    for fact, title, x in (("N", "FID against N", "samples"), ("steps", "FID against sampling steps", "steps")):
        for made in dict.fromkeys(each.made(fact) for run in runs for each in run.evaluations if "fid" in each.values):

            def fid(run: Run, fact: str = fact, made: str = made) -> Curve | None:
                points = sorted(
                    (float("".join(c for c in each.facts[fact] if c.isdigit()) or "nan"), each.values["fid"])
                    for each in run.evaluations
                    if "fid" in each.values and fact in each.facts and each.made(fact) == made
                )
                key, values = np.array(points, np.float64).reshape(-1, 2).T
                return Curve(key, key, values) if len(points) > 1 else None

            plots.append(plot(title, made, cells, {"steps": (x, fid)}, "linear"))
    return [each for each in plots if each.variants]


def plot(
    title: str,
    note: str,
    cells: Sequence[Cell],
    axes: Mapping[str, tuple[str, Callable[[Run], Curve | None]]],
    scale: str,
    main: bool = True,
) -> Plot:
    """Curves of all cells, drawn once for each horizontal axis: its label, and what to draw of a run."""
    variants: dict[str, Any] = {}
    lows, highs = [np.inf], [0.0]
    for axis, (label, of) in axes.items():
        traces = []
        for index, cell in enumerate(cells):
            drawn = [(run, ordered(curve)) for run in cell.runs if (curve := of(run)) is not None]
            traces += _traces(index, cell, drawn)
            lows += [float(curve.y.min()) for _, curve in drawn]
            highs += [float(curve.y.max()) for _, curve in drawn]
        if traces:
            variants[axis] = {"data": traces, "layout": {"xaxis": {"title": {"text": label}}}}
    low, high = min(lows), max(highs)
    return Plot(title, note, variants, scale if low > 0 else "linear", high / low if low > 0 else 1.0, main)


def _traces(index: int, cell: Cell, drawn: Sequence[tuple[Run, Curve]]) -> list[dict[str, Any]]:
    """The band below, then the seeds, then the mean."""
    colour, dash = style(index)
    counted = {run.folder for run in cell.counted.values()}
    average = mean_and_error([curve for run, curve in drawn if run.folder in counted])
    traces = []
    if average is not None:
        mean, error = shortened(average[0]), shortened(average[0]._replace(y=average[1])).y
        x, y = np.r_[mean.x, mean.x[::-1]], np.r_[mean.y - error, (mean.y + error)[::-1]]
        fill = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.18)"
        band = {"fill": "toself", "fillcolor": fill, "line": {"width": 0}, "hoverinfo": "skip", "mode": "lines"}
        traces.append(_scatter(index, x, y, "", **band, hovertemplate=None))
    for run, curve in drawn:
        finished = run.state == "finished"
        name = f"{cell.label}, seed {run.seed}" + ("" if finished else f", {run.state}")
        line = {"width": 1 if average else 2, "color": colour, "dash": dash if finished else "dot"}
        short = shortened(curve)
        traces.append(_scatter(index, short.x, short.y, name, line=line, opacity=0.45 if average else 1))
    if average is not None:
        name = f"{cell.label}, mean of {len(counted)} seeds"
        traces.append(_scatter(index, mean.x, mean.y, name, line={"width": 2.5, "color": colour, "dash": dash}))
    return traces


def _scatter(cell: int, x: Array, y: Array, name: str, **options: Any) -> dict[str, Any]:
    said = f"%{{x:,.4~g}}: <b>%{{y:.4~g}}</b><extra>{html.escape(name)}</extra>"
    kind = {"mode": "lines+markers" if len(x) <= FEW else "lines", "hovertemplate": said, "marker": {"size": 5}}
    return {"type": "scatter", "x": _typed(x), "y": _typed(y), "meta": cell} | kind | options


def _typed(values: Array) -> dict[str, str]:
    """Numbers as plotly.js reads them with a third of the bytes of text."""
    return {"dtype": "f4", "bdata": base64.b64encode(values.astype("<f4").tobytes()).decode()}


def mean_and_error(curves: Sequence[Curve]) -> tuple[Curve, Array] | None:
    """The mean at the keys that all curves have, and its standard error; None for fewer than two curves.

    Args:
        curves: with increasing keys.
    """
    if len(curves) < 2:
        return None
    keys = functools.reduce(np.intersect1d, [curve.key for curve in curves])
    if not len(keys):
        return None
    there = [np.searchsorted(curve.key, keys) for curve in curves]
    x, y = (np.stack([curve[i][at] for curve, at in zip(curves, there, strict=True)]) for i in (1, 2))
    return Curve(keys, x.mean(0), y.mean(0)), y.std(0, ddof=1) / len(curves) ** 0.5


def ordered(curve: Curve) -> Curve:
    """Its points by increasing key; of several with the same key, the last."""
    key, last = np.unique(curve.key[::-1], return_index=True)
    return Curve(key, curve.x[::-1][last], curve.y[::-1][last])


def shortened(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most so many points, each the mean of as many neighbours."""
    starts = np.arange(0, len(curve.key), -(-len(curve.key) // most))
    counts = np.diff(np.append(starts, len(curve.key)))
    return Curve(*(np.add.reduceat(values, starts) / counts for values in curve))
