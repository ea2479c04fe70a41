"""What the folders of training runs hold, read as data.

Nothing in a folder is executed, imported or unpickled, checkpoints are not opened, and links that lead out of a run's
folder are not followed: a folder may come from somebody else.
"""

import csv
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from ddpm.reporting.quantities import COUNTS
from ddpm.support.text import natural, printable

CONFIG, RESULTS, METRICS, LOG = ".hydra/config.yaml", "results.json", "metrics.csv", "train.log"
MOST_BYTES = 256 * 2**20
"""Of a file, and of what a compressed one expands to; beyond that it is not a run's."""
MOST_OPTIONS = 5000
DIVERGED = ("not a finite number", "not finite numbers", "there are no results: ")
"""What the error of a run says whose loss, weights or results are NaN or infinite."""
BEGIN = "\nfolder: "
"""What a run prints into its log before it trains, each time that it is started."""
NO_RESULT = {"n", "T", "levels", "steps", "reference_n", "features_dim", "features_accuracy", "evaluations", "guidance"}
"""Numbers in metrics.json that say how others were made."""

Array = NDArray[np.float64]
Scalar = str | int | float | bool | None


class Curve(NamedTuple):
    """A function that was measured at points.

    Attributes:
        key: what identifies a point in every run, such as the step, shape (K,).
        x: position on the axis; often the key.
        y: the values, finite.
    """

    key: Array
    x: Array
    y: Array


class Result(NamedTuple):
    """Which number it is.

    Attributes:
        name: of the quantity.
        made: how evaluate.py made it; empty for a number from the training run.
    """

    name: str
    made: str


@dataclass(frozen=True)
class Evaluation:
    """A part of what evaluate.py found for a run.

    Attributes:
        facts: how the values were made, by name, in the order in which they are printed.
        values: the numbers by name.
        unreliable: names of those that come from too few images.
        warnings: what is to be said of them.
    """

    facts: Mapping[str, str]
    values: Mapping[str, float]
    unreliable: frozenset[str]
    warnings: tuple[str, ...]

    def made(self, *without: str) -> str:
        """The facts in a line, some left out."""
        return ", ".join(fact for name, fact in self.facts.items() if name not in without)


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
    results = _mapping(json.loads(content(folder, RESULTS) or b"{}"), RESULTS)
    stored = content(folder, CONFIG)
    config = flat(resolved(yaml.safe_load(stored)) if stored else results.get("config", {}))
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
    numbers = {name: number(value) for name, value in _mapping(latest, RESULTS).items()}
    trained = {Result(name, ""): value for name, value in numbers.items() if value is not None}
    evaluations, tables = _evaluations(folder, step)
    warnings = [*_texts(results.get("warnings")), *(said for each in evaluations for said in each.warnings)]
    typed = content(folder, ".hydra/overrides.yaml")
    words = yaml.safe_load(typed) if typed is not None else None
    return Run(
        folder=folder,
        name=printable(os.path.relpath(folder)),
        config=config,
        typed=tuple(map(str, words)) if isinstance(words, list) else None,
        state=state,
        step=step,
        note="" if finished else error or "",
        written=max((path.stat().st_mtime for path in map(folder.joinpath, (METRICS, LOG)) if path.is_file()), default=0),
        results=trained | {Result(name, e.made()): value for e in evaluations for name, value in e.values.items()},
        curves=curves,
        evaluations=evaluations,
        tables=tables,
        warnings=tuple(dict.fromkeys(warnings)),
        unreliable=frozenset(Result(name, e.made()) for e in evaluations for name in e.unreliable),
        grid=_grid(folder),
    )


def content(folder: Path, name: str, most: int = MOST_BYTES) -> bytes | None:
    """The bytes of a regular file in a folder; None if there is none, or a link leads to it from outside.

    Raises:
        ValueError: the file is too large.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > most:
            raise ValueError(f"{name} has {status.st_size:,} bytes, more than {most:,}")
        return file.read(most)


def resolved(node: Any) -> Any:
    """A configuration with `${a.b}` replaced by what it names; other interpolations stay as they are."""

    def walk(value: Any, depth: int) -> Any:
        if depth > 40:
            raise ValueError("the configuration is nested too deeply")
        if isinstance(value, dict):
            return {str(key): walk(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, depth + 1) for each in value]
        if isinstance(value, str) and (named := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            at = node
            for key in named[1].split("."):
                at = at.get(key) if isinstance(at, dict) else None
            return value if at is None else walk(at, depth + 1)
        return value

    if isinstance(node, dict) and sum(1 for _ in _leaves(node)) > MOST_OPTIONS:
        raise ValueError(f"the configuration has more than {MOST_OPTIONS:,} values")
    return walk(_mapping(node, CONFIG), 0)


def flat(config: Any) -> dict[str, Scalar]:
    """Values by dotted name; a list is one value, its text. Callbacks that are set to null are left out."""
    return {
        name: value
        for name, value in _leaves(_mapping(config, "config"))
        if not (value is None and re.fullmatch(r"callbacks\.\w+", name))
    }


def _leaves(node: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Scalar]]:
    if depth > 40:
        raise ValueError("the configuration is nested too deeply")
    if isinstance(node, dict):
        for count, (key, value) in enumerate(node.items()):
            if count > MOST_OPTIONS:
                raise ValueError(f"{name} has more than {MOST_OPTIONS:,} values")
            yield from _leaves(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(node, list) and any(isinstance(each, dict | list) for each in node):
        yield from _leaves({str(i): each for i, each in enumerate(node)}, name, depth + 1)
    elif isinstance(node, list):
        yield name, f"[{', '.join(text(each) for each in node)}]"
    elif isinstance(node, float) and not math.isfinite(node):
        yield name, str(node)  # as in JSON
    else:
        yield name, node if isinstance(node, str | int | float | bool | None) else str(node)


def text(value: Scalar) -> str:
    """A value as it is typed."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return printable(f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value))


def option(name: str) -> str:
    """The short name of a class of `_target_`: of its file for ddpm's own, where each option is a file."""
    parts = name.split(".")
    return printable(parts[-2].rstrip("_") if parts[0] == "ddpm" and len(parts) > 2 else parts[-1])


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is damaged: it holds no names")
    return value


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
        if len(row) != len(names) or (step := _parsed(row[at])) is None:
            continue
        for name, cell in zip(names, row, strict=True):
            if cell and (value := _parsed(cell)) is not None:
                columns[name][0].append(step)
                columns[name][1].append(value)
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items() if steps}


def _parsed(cell: str) -> float | None:
    try:
        return number(float(cell))
    except ValueError:
        return None


def _error(log: str) -> str | None:
    """The error that ended what was started last, in a line."""
    _, _, trace = log[log.rfind(BEGIN) + 1 :].rpartition("Traceback (most recent call last):\n")
    said = next((line for line in trace.splitlines() if line and not line[0].isspace()), None)
    return None if said is None else printable(said.partition(": ")[2] or said)


def _grid(folder: Path) -> Path | None:
    """The last grid of samples; its name is checked, its content is not read yet."""
    samples = folder / "samples"
    if samples.is_symlink() or not samples.is_dir():
        return None
    names = [path.name for path in samples.iterdir() if re.fullmatch(r"step_\d+\.png", path.name)]
    return samples / max(names, key=natural) if names else None


# ---------------------------------------------------------------- evaluations


def _evaluations(folder: Path, step: int) -> tuple[tuple[Evaluation, ...], dict[str, Curve]]:
    """What evaluate.py wrote next to the checkpoint; of two that were made alike, the later counts."""
    parts: dict[str, Evaluation] = {}
    tables: dict[str, Curve] = {}
    for name in sorted(path.name for path in folder.glob("evaluate*") if path.is_dir() and not path.is_symlink()):
        data = content(folder, f"{name}/metrics.json")
        if data is None:
            continue
        whole = _mapping(json.loads(data), f"{name}/metrics.json")
        common = {}
        if whole.get("weights") != "ema":
            common["weights"] = f"{whole.get('weights')} weights"
        if (of := number(whole.get("step"))) is not None and of != step:
            common["step"] = f"step {of:,.0f}"
        if isinstance(whole.get("data_of_training"), dict) and False in whole["data_of_training"].values():
            common["data"] = "other images than the training run's"
        for part, values in whole.items():
            if isinstance(values, dict) and number(values.get("n")) is not None:
                made = _evaluation(part, values, common)
                parts[made.made()] = made
        if "step" not in common:
            tables |= _tables(folder, name)
    return tuple(parts.values()), tables


def _evaluation(part: str, values: dict[str, Any], common: Mapping[str, str]) -> Evaluation:
    facts = {"N": f"N = {values['n']:,}"}
    if part == "samples":
        facts["features"] = f"{values.get('features') or 'pixels'}"
        sampler = values.get("sampler")
        facts["sampler"] = option(str(sampler.get("_target_"))) if isinstance(sampler, dict) else "unknown sampler"
        facts["steps"] = f"{values.get('steps')} steps"
        if number(values.get("guidance")):
            interval = values.get("guidance_interval")
            facts["guidance"] = f"guidance {values['guidance']:g}" + (f" in {interval}" if interval else "")
    else:
        facts["part"] = {"nll": "bound", "ode": "probability-flow ODE"}.get(part, part)
        for name in ("split", "estimator", "divergence"):
            if isinstance(values.get(name), str):
                facts[name] = values[name]
        if values.get("x_0_clipped"):
            facts["clip"] = "x^_0 clipped"
        if number(values.get("T")):
            facts["T"] = f"T = {values['T']:,}"
    numbers = {
        name: found
        for name, value in values.items()
        if name not in NO_RESULT | COUNTS and not name.endswith("_n") and (found := number(value)) is not None
    }
    return Evaluation(
        {name: printable(fact) for name, fact in (facts | dict(common)).items()},
        numbers,
        frozenset(_texts(values.get("unreliable"))),
        tuple(_texts(values.get("warnings"))),
    )


def _texts(value: Any) -> list[str]:
    return [printable(str(each)) for each in value] if isinstance(value, list) else []


def _tables(folder: Path, name: str) -> dict[str, Curve]:
    """Curves that an evaluation left as files."""
    tables = {}
    for table, key, x, y in (
        ("rate_distortion", "steps", "rate", "rmse"),
        ("guidance", "guidance", "guidance", "fid"),
    ):
        data = content(folder, f"{name}/{table}.csv")
        rows = [*csv.DictReader(io.StringIO((data or b"").decode(errors="replace"), newline=""))]
        points = [[_parsed(row.get(column) or "") for column in (key, x, y)] for row in rows]
        if whole := [point for point in points if None not in point]:
            tables[table] = Curve(*np.array(whole, np.float64).T)
    data = content(folder, f"{name}/terms.npz")
    if data is not None and (terms := by_time(data)) is not None:
        tables["terms"] = terms
    return tables


def by_time(data: bytes) -> Curve | None:
    """The mean of each term of the bound over the images evaluated at its time, from a terms.npz.

    Returns:
        Bits/dim of L_{t-1} against t; None if the file is damaged or too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * MOST_BYTES:
                return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            terms = np.asarray(arrays["terms"], np.float64)
            times = np.asarray(arrays["times"] if "times" in arrays else np.arange(1, terms.shape[1] + 1))
            times = np.broadcast_to(times, terms.shape)
    except (ValueError, OSError, KeyError, IndexError, MemoryError, EOFError, zipfile.BadZipFile, zipfile.zlib.error):
        return None
    t, group = np.unique(times, return_inverse=True)
    mean = np.bincount(group.ravel(), terms.ravel()) / np.bincount(group.ravel())
    good = np.isfinite(mean) & (t > 0)
    t = t[good].astype(np.float64)
    return Curve(t, t, mean[good])
