"""What the folders of training runs hold, read as data.

Nothing in a folder is executed, imported or unpickled, checkpoints are not opened, and links that lead out of a run's
folder are not followed: a folder may come from somebody else.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ddpm.reporting.contents import Array, Curve, content, mapping, number, parsed, texts
from ddpm.reporting.evaluations import Evaluation, evaluations
from ddpm.reporting.options import Scalar, flat
from ddpm.reporting.quantities import COUNTS
from ddpm.support.text import natural, printable

CONFIG, RESULTS, METRICS, LOG = ".hydra/config.yaml", "results.json", "metrics.csv", "train.log"
DIVERGED = ("has not been finite", "are not finite", "there are no results: ")
"""What the error of a run says whose loss, weights or results are NaN or infinite."""
MOST_CONFIG = 2**20
"""Bytes of a configuration."""
BEGIN = "\nfolder: "
"""What a run prints into its log before it trains, each time that it is started."""


class Result(NamedTuple):
    """Which number it is.

    Attributes:
        name: of the quantity.
        made: how evaluate.py made it; empty for a number from the training run.
    """

    name: str
    made: str


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        folder: where it lies.
        name: the folder relative to the current one, printable.
        config: its options by dotted name, interpolations resolved.
        typed: what was typed to start it; None if that is not known.
        state: `finished`, `unfinished`, `diverged` or `failed`.
        step: the last one that is known.
        note: the error that ended it.
        written: when its log was written last, seconds since 1970.
        results: its numbers; the latest ones of a run that is not finished.
        curves: values against the step, by name.
        evaluations: of the checkpoint.
        tables: curves of evaluations: `rate_distortion`, `terms`, `guidance`.
        warnings: what is to be said of the numbers.
        unreliable: numbers that come from too few images.
        grid: the file of the last grid of samples.
    """

    folder: Path
    name: str
    config: Mapping[str, Scalar]
    typed: tuple[str, ...] | None
    state: str
    step: int
    note: str
    written: float
    results: Mapping[Result, float]
    curves: Mapping[str, Curve]
    evaluations: tuple[Evaluation, ...] = ()
    tables: Mapping[str, Curve] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unreliable: frozenset[Result] = frozenset()
    grid: Path | None = None

    @property
    def seed(self) -> int:
        """Of the run."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else 0

    @property
    def max_steps(self) -> int | None:
        """The steps that it was to train."""
        steps = self.config.get("trainer.max_steps")
        return steps if isinstance(steps, int) else None

    def seconds(self, steps: Array) -> Array | None:
        """The training time at these steps, interpolated between those at which it was logged; None if it was not."""
        logged = self.curves.get("seconds")
        return None if logged is None else np.interp(steps, logged.x, logged.y)


def found(folders: list[Path]) -> tuple[list[Run], dict[str, str]]:
    """All runs in the folders, in natural order, and why others could not be read, by folder.

    Args:
        folders: each of them a run, or a folder that holds runs at any depth.
    Raises:
        ValueError: a folder does not exist, or there are no runs.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{printable(folder)} is not a folder; give folders of runs, such as runs/digits")
        for place in sorted(_places(folder), key=lambda path: natural(str(path))):
            places.setdefault(place.resolve(), place)
    runs, unread = [], {}
    for place in places.values():
        try:
            runs.append(read(place))
        except (ValueError, OSError, csv.Error, yaml.YAMLError, RecursionError) as error:
            unread[printable(os.path.relpath(place))] = printable((str(error) or type(error).__name__).splitlines()[0])
    if not runs and not unread:
        where = ", ".join(printable(folder) for folder in folders)
        raise ValueError(f"no runs in {where}; a run is a folder with {METRICS} or {RESULTS}, made by train.py")
    return runs, unread


def _places(folder: Path) -> Iterator[Path]:
    """Folders of runs in a folder; links to folders are not followed, and a run holds no other runs."""
    for parent, inner, files in os.walk(folder):
        if {RESULTS, METRICS, LOG} & {*files} or ".hydra" in inner:
            inner.clear()
            yield Path(parent)


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: what it holds is not what a run writes.
    """
    results = mapping(json.loads(content(folder, RESULTS) or b"{}"), RESULTS)
    stored = content(folder, CONFIG, MOST_CONFIG)
    config = flat(_yaml(stored) if stored else results.get("config", {}))
    log = (content(folder, LOG) or b"").decode(errors="replace")
    error = _error(log)
    if not config:
        raise ValueError(f"no configuration: {error or 'it never started to train'}")
    rows = _rows(content(folder, METRICS) or b"")
    curves = {name: Curve(steps, steps, values) for name, (steps, values) in rows.items() if name not in COUNTS}
    step = int(max([number(results.get("steps")) or 0, *(curve.key[-1] for curve in curves.values())]))
    finished = "metrics" in results and number(results.get("steps")) == step  # else it went on after it had finished
    state = "finished" if finished else "unfinished" if error is None else "failed"
    if state == "failed" and any(words in str(error) for words in DIVERGED):
        state = "diverged"
    latest = results["metrics"] if finished else {name: values[-1] for name, (_, values) in rows.items()}
    numbers = {name: number(value) for name, value in mapping(latest, RESULTS).items()}
    trained = {Result(name, ""): value for name, value in numbers.items() if value is not None}
    evaluated, tables = evaluations(folder, step)
    warnings = [*texts(results.get("warnings")), *(said for each in evaluated for said in each.warnings)]
    typed = content(folder, ".hydra/overrides.yaml")
    words = _yaml(typed) if typed is not None else None
    return Run(
        folder=folder,
        name=printable(os.path.relpath(folder)),
        config=config,
        typed=tuple(map(str, words)) if isinstance(words, list) else None,
        state=state,
        step=step,
        note="" if finished else error or "",
        written=max(
            (path.lstat().st_mtime for path in map(folder.joinpath, (METRICS, LOG)) if path.exists()), default=0
        ),
        results=trained | {Result(name, e.made()): value for e in evaluated for name, value in e.values.items()},
        curves=curves,
        evaluations=evaluated,
        tables=tables,
        warnings=tuple(dict.fromkeys(warnings)),
        unreliable=frozenset(Result(name, e.made()) for e in evaluated for name in e.unreliable),
        grid=_grid(folder),
    )


def _yaml(data: bytes) -> Any:
    """Plain values; by the parser in C, where PyYAML has it."""
    return yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _rows(data: bytes) -> dict[str, tuple[Array, Array]]:
    """Steps and finite values of each column; a line that is still being written is left out."""
    whole = data[: data.rfind(b"\n") + 1].decode(errors="replace")
    reader = csv.reader(io.StringIO(whole, newline=""))
    names = next(reader, [])
    if "step" not in names:
        return {}
    at = names.index("step")
    columns: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for row in reader:
        if len(row) != len(names) or (step := parsed(row[at])) is None:
            continue
        for name, cell in zip(names, row, strict=True):
            if cell and (value := parsed(cell)) is not None:
                columns[name][0].append(step)
                columns[name][1].append(value)
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items() if steps}


def _error(log: str) -> str | None:
    """The error that ended what was started last, in a line."""
    _, raised, trace = log[log.rfind(BEGIN) + 1 :].rpartition("Traceback (most recent call last):\n")
    said = next((line for line in trace.splitlines() if line and not line[0].isspace()), None) if raised else None
    return None if said is None else printable(said.partition(": ")[2] or said)


def _grid(folder: Path) -> Path | None:
    """The last grid of samples; its name is checked, its content is not read yet."""
    samples = folder / "samples"
    if samples.is_symlink() or not samples.is_dir():
        return None
    names = [path.name for path in samples.iterdir() if re.fullmatch(r"step_\d+\.png", path.name)]
    return samples / max(names, key=natural) if names else None
