"""What evaluate.py wrote next to a run's checkpoint."""

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.reporting.contents import MOST_BYTES, Curve, content, mapping, number, parsed, texts
from ddpm.reporting.options import option
from ddpm.reporting.quantities import COUNTS
from ddpm.support.text import printable

NO_RESULT = {"n", "T", "levels", "steps", "reference_n", "features_dim", "features_accuracy", "evaluations", "guidance"}
"""Numbers in metrics.json that say how others were made."""


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


def evaluations(folder: Path, step: int) -> tuple[tuple[Evaluation, ...], dict[str, Curve]]:
    """What evaluate.py wrote next to the checkpoint; of two that were made alike, the later counts."""
    parts: dict[str, Evaluation] = {}
    tables: dict[str, Curve] = {}
    for name in sorted(path.name for path in folder.glob("evaluate*") if path.is_dir() and not path.is_symlink()):
        data = content(folder, f"{name}/metrics.json")
        if data is None:
            continue
        whole = mapping(json.loads(data), f"{name}/metrics.json")
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
        frozenset(texts(values.get("unreliable"))),
        tuple(texts(values.get("warnings"))),
    )


def _tables(folder: Path, name: str) -> dict[str, Curve]:
    """Curves that an evaluation left as files."""
    tables = {}
    for table, key, x, y in (
        ("rate_distortion", "steps", "rate", "rmse"),
        ("guidance", "guidance", "guidance", "fid"),
    ):
        data = content(folder, f"{name}/{table}.csv")
        rows = [*csv.DictReader(io.StringIO((data or b"").decode(errors="replace"), newline=""))]
        points = [[parsed(row.get(column) or "") for column in (key, x, y)] for row in rows]
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
    except (ValueError, OSError, KeyError, IndexError, MemoryError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    t, group = np.unique(times, return_inverse=True)
    mean = np.bincount(group.ravel(), terms.ravel()) / np.bincount(group.ravel())
    good = np.isfinite(mean) & (t > 0)
    t = t[good].astype(np.float64)
    return Curve(t, t, mean[good])
