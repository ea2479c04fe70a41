"""Plots of results, drawn with Matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm.likelihood.progressive_coding import RateDistortion
from ddpm.support.files import written
from ddpm.support.pictures import grid


def save(figure: Figure, path: Path, text: Mapping[str, str] | None = None) -> Path:
    """Write a figure as PNG, with `text` as its metadata; returns its path."""
    with written(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata=dict(text or {}))
    return path


def terms(times: Tensor, bits: Tensor) -> Figure:
    """Each term of the bound against t.

    Args:
        times: t, increasing, shape (S,).
        bits: mean of L_{t-1}, bits/dim, shape (S,).
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(times, bits, ".-", markersize=3, linewidth=0.8)
    axes.set(xlabel="t", ylabel="bits/dim", title="Terms of the bound: $L_0$ at t = 1, $L_{t-1}$ above")
    _plain(axes)
    return figure


def rate_distortion(curve: RateDistortion) -> Figure:
    """Distortion against steps, rate against steps, distortion against rate (Ho et al. 2020, Figure 5)."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    rmse, rate, steps = "distortion (RMSE, 0..255)", "rate (bits/dim)", "reverse steps T - t + 1"
    panels = (
        (steps, curve.steps, rmse, curve.rmse),
        (steps, curve.steps, rate, curve.rate),
        (rate, curve.rate, rmse, curve.rmse),
    )
    for axes, (x_label, x, y_label, y) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(x, y)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        _plain(axes)
    return figure


def guidance(rows: Sequence[Mapping[str, float]]) -> Figure:
    """FID, of all classes and within one class, and class accuracy, against the guidance scale.

    Args:
        rows: `guidance`, `fid` and, if known, `fid_class_mean` and `accuracy`.
    """
    w = [row["guidance"] for row in rows]
    panels: list[dict[str, str]] = [{"fid": "all classes", "fid_class_mean": "one class, mean"}]
    if "accuracy" in rows[0]:
        panels.append({"accuracy": ""})
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, curves in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, label in curves.items():
            if name in rows[0]:
                axes.plot(w, [row[name] for row in rows], marker="o", label=label)
        axes.set(xlabel="guidance w", ylabel="FID" if "fid" in curves else "accuracy of the requested classes")
        if len(curves) > 1:
            axes.legend()
        _plain(axes)
    return figure


def tiles(images: Tensor, columns: Sequence[str], rows: Sequence[str] | None, title: str) -> Figure:
    """Labelled rows of images.

    Args:
        images: uint8, shape (R, K, C, H, W).
        columns: K labels.
        rows: R labels, or None.
        title: above the columns.
    """
    picture = grid(images.flatten(0, 1), images.shape[1], least_width=1).permute(1, 2, 0).numpy()
    height, width = picture.shape[:2]
    step_y, step_x = height / len(images), width / images.shape[1]
    size = (1 + 0.7 * images.shape[1], 0.8 + 0.7 * len(images) * step_y / step_x)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([(i + 0.5) * step_x for i in range(images.shape[1])], list(columns), fontsize=8)
    axes.set_yticks([(i + 0.5) * step_y for i in range(len(images))] if rows else [], list(rows or []), fontsize=8)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
