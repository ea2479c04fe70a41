"""The report: one HTML file that needs nothing else."""

import base64
import collections
import hashlib
import io
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from ddpm import __version__
from ddpm.reporting import figures
from ddpm.reporting.cells import (
    ABSENT,
    Cell,
    Entry,
    Mark,
    cells,
    column,
    compared,
    entries,
    incomparable,
    results,
    shown_option,
)
from ddpm.reporting.contents import content
from ddpm.reporting.quantities import COUNTS, QUANTITIES, quantity
from ddpm.reporting.runs import Result, Run
from ddpm.reporting.statistics import LEVEL, shown

GRID_BYTES = 4_500_000
"""Of all grids together, before they are encoded as text, which adds a third."""
MOST_PIXELS = 50_000_000
QUALITIES = (90, 75, 50, 25)
"""Of WebP, tried in turn for a grid that is too large without loss."""


def page(runs: Sequence[Run], unread: Mapping[str, str], program: str, refresh: float | None = None) -> str:
    """The report as HTML.

    Args:
        runs: to compare.
        unread: folders that could not be read, and why.
        program: what starts a training run on a command line.
        refresh: seconds after which the page loads itself again; None for never.
    """
    groups = cells(runs)
    plots = {"training": figures.training(groups), "evaluated": figures.evaluated(groups)}
    columns = _columns(groups)
    flat = [plot for each in plots.values() for plot in each]
    environment = Environment(
        loader=PackageLoader("ddpm", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, plotly = _source("page.js"), get_plotlyjs().replace("\r", "")
    return environment.get_template("page.html").render(
        style=Markup(_source("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        hashes=[_hash(script), _hash(plotly)],
        data={
            "plots": [{"variants": plot.variants, "scale": plot.scale, "spread": plot.spread} for plot in flat],
            "cells": [_words(cell, program) for cell in groups],
            "refresh": refresh,
        },
        version=__version__,
        now=time.strftime("%Y-%m-%d %H:%M"),
        states=_counts(run.state for run in runs),
        runs=runs,
        unread=unread,
        cells=[_cell(index, cell) for index, cell in enumerate(groups)],
        options=[*groups[0].options] if groups else [],
        columns=columns,
        apart=_apart(columns),
        training=_numbered(plots["training"], 0),
        evaluated=_numbered(plots["evaluated"], len(plots["training"])),
        timed=sum("seconds" in run.curves for run in runs),
        grids=_grids(groups),
        same=_same(groups),
        differing=_differing(groups),
        listed=[(index, _run(run, program)) for index, cell in enumerate(groups) for run in cell.runs],
        warnings=_counts(warning for run in runs for warning in run.warnings),
        single=any(len(cell.counted) == 1 for cell in groups),
        repeated=any(len(cell.by_seed) < len(cell.runs) for cell in groups),
        level=LEVEL,
    )


@cache
def _source(name: str) -> str:
    loader = PackageLoader("ddpm", "reporting")
    return loader.get_source(Environment(), name)[0]


def _hash(script: str) -> str:
    """What the policy of the page allows to run: this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _counts(values: Any) -> list[tuple[str, int]]:
    return collections.Counter(values).most_common()


def _words(cell: Cell, program: str) -> str:
    """What a cell is found by."""
    found = [f"{name}={value}" for name, value in cell.options.items()]
    for run in cell.runs:
        found += [run.name, run.state, f"seed={run.seed}", _command(run, program) or ""]
    return " ".join(found).lower()


def _command(run: Run, program: str) -> str | None:
    """What starts the run again; None if that is not known, or a terminal might take it for something else."""
    if run.typed is None or not all(word.isprintable() for word in run.typed):
        return None
    return " ".join([program, *map(shlex.quote, run.typed)])


def _numbered(plots: Sequence[figures.Plot], start: int) -> list[dict[str, Any]]:
    return [{"id": i, "title": plot.title, "note": plot.note, "main": plot.main} for i, plot in enumerate(plots, start)]


def _cell(index: int, cell: Cell) -> dict[str, Any]:
    colour, dash = figures.style(index)
    numbers = sum(run.state == "finished" for run in cell.by_seed.values())
    others = [run for run in cell.by_seed.values() if run.state != "finished"]
    return {
        "index": index,
        "colour": colour,
        "dash": dash,
        "label": cell.label,
        "options": [*cell.options.values()],
        "finished": numbers,
        "seeds": len(cell.by_seed),
        "others": [(run.state, f"{run.state}, seed {run.seed}, step {_progress(run)}") for run in others],
        "preliminary": not cell.finished,
    }


def _progress(run: Run) -> str:
    return f"{run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps and run.max_steps != run.step else "")


# ---------------------------------------------------------------- the table


def _columns(groups: Sequence[Cell]) -> list[dict[str, Any]]:
    """The numbers, each with an entry for every cell."""
    order = [*QUANTITIES]
    names = [result for result in results(groups) if result.name not in COUNTS and not result.name.endswith("_n")]
    names.sort(key=lambda result: (result.made, order.index(result.name) if result.name in order else len(order)))
    return [_column(groups, result) for result in names]


def _column(groups: Sequence[Cell], result: Result) -> dict[str, Any]:
    of = quantity(result.name)
    having = [cell for cell in groups if cell.finished and cell.values(result)]
    apart = incomparable(having, of, result) if of.better and len(having) > 1 else []
    unreliable = any(result in run.unreliable for cell in groups for run in cell.runs)
    return {
        "label": of.label,
        "made": result.made or _n(groups, of.n),
        "better": {1: "↑", -1: "↓", 0: ""}[of.better],
        "apart": ", ".join(apart),
        "unreliable": unreliable,
        "main": of.main,
        "entries": [_entry(each) for each in entries(groups, result)],
    }


def _apart(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Why columns are not ranked, and which."""
    found: dict[str, list[str]] = {}
    for each in columns:
        if each["apart"] and each["label"] not in found.setdefault(each["apart"], []):
            found[each["apart"]].append(each["label"])
    return [*found.items()]


def _n(groups: Sequence[Cell], name: str | None) -> str:
    """The number of images behind a result of training."""
    found = {run.results.get(Result(name, "")) for cell in groups for run in cell.counted.values()} if name else set()
    numbers = sorted({n for n in found if n is not None})
    return "" if not numbers else f"N = {numbers[0]:,.0f}" if len(numbers) == 1 else "N differs"


def _entry(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    mean, error, n = entry.estimate
    said = [f"seed {seed}: {shown(value, None)}" for seed, value in entry.values.items()]
    said.append("mean ± standard error" if n > 1 else "one seed, so no error can be given")
    if entry.against is not None:
        d = entry.against
        test = "paired over the same seeds" if d.paired else "Welch"
        interval = f"{LEVEL:.0%} interval ± {shown(d.margin, None)}"
        said.append(f"minus the best: {shown(d.mean, d.error)} ({test}, {interval})")
    elif entry.mark is Mark.UNTESTED:
        said.append("no test against the best, as one of the two has a single seed")
    return {"shown": shown(mean, error), "mean": mean, "mark": entry.mark.value, "title": "\n".join(said)}


# ---------------------------------------------------------------- options and runs


def _same(groups: Sequence[Cell]) -> list[tuple[str, str]]:
    """The options that all runs share."""
    configs = [compared(cell.runs[0]) for cell in groups]
    return [
        (column(name), shown_option(name, configs[0]))
        for name in (configs[0] if configs else ())
        if len({shown_option(name, config) for config in configs}) == 1
    ]


def _differing(groups: Sequence[Cell]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each option that differs, with its values and how many runs have them."""
    found = []
    for name in groups[0].options if groups else ():
        counts = collections.Counter[str]()
        for cell in groups:
            if cell.options[name] != ABSENT:
                counts[cell.options[name]] += len(cell.runs)
        found.append((name, [*counts.items()]))
    return found


def _run(run: Run, program: str) -> dict[str, Any]:
    seconds = run.curves.get("seconds")
    ago = time.time() - run.written
    return {
        "name": run.name,
        "seed": run.seed,
        "state": run.state,
        "progress": _progress(run),
        "time": None if seconds is None else _duration(seconds.y[-1]),
        "written": f"{_duration(ago)} before this report" if run.state == "unfinished" and run.written else None,
        "note": run.note,
        "command": _command(run, program),
        "warnings": run.warnings,
    }


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(max(0, seconds)), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _grids(groups: Sequence[Cell]) -> list[tuple[int, list[dict[str, Any]]]]:
    """For each seed the last grid of each cell's run, which start from the same noise."""
    shown_runs = [(seed, i, run) for i, cell in enumerate(groups) for seed, run in cell.by_seed.items() if run.grid]
    found: dict[int, list[dict[str, Any]]] = {}
    for seed, index, run in sorted(shown_runs, key=lambda each: each[:2]):
        assert run.grid is not None
        picture = picture_url(content(run.folder, f"samples/{run.grid.name}"), GRID_BYTES // len(shown_runs))
        if picture is not None:
            step = int(run.grid.stem.removeprefix("step_"))
            found.setdefault(seed, []).append({"cell": index, "label": groups[index].label, "step": step} | picture)
    return [*found.items()]


def picture_url(data: bytes | None, most: int) -> dict[str, Any] | None:
    """A PNG file as a `data:` URL of WebP with its size in pixels: without loss if that takes few enough bytes.

    Returns:
        None if it is no picture.
    """
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                return None
            picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, SyntaxError, ValueError):  # Pillow's for damaged files
        return None
    for quality in (None, *QUALITIES):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", method=4, lossless=quality is None, quality=quality or 80)
        if buffer.tell() <= most:
            break
    url = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"url": url, "width": width, "height": height}
