"""Cells of a comparison: runs whose configurations agree except for the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ddpm.reporting.options import Scalar, option, text
from ddpm.reporting.quantities import BOUND, OBJECTIVE, Quantity, quantity
from ddpm.reporting.runs import Result, Run
from ddpm.reporting.statistics import Difference, Estimate, difference, estimate
from ddpm.support.text import printable

NOT_COMPARED = ("output_dir", "ckpt", "other_data", "logger")
"""Options that do not change what a run computes, as in `setup.run_folder.comparable`, and where it is logged."""
ABSENT = "–"
"""For an option that a cell does not have."""


class Mark(Enum):
    """How a cell compares with the best one."""

    BEST = "best"
    TIED = "tied"
    """Not significantly different from the best."""
    WORSE = "worse"
    UNTESTED = "untested"
    """One of the two has a single seed, so that no error is known."""
    NONE = ""


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seeds alone.

    Attributes:
        runs: all of them.
        options: the options in which the cells of the comparison differ, as texts by column.
    """

    runs: tuple[Run, ...]
    options: Mapping[str, str]

    @property
    def label(self) -> str:
        """What tells it from the other cells."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items() if value != ABSENT) or "all runs"

    @property
    def by_seed(self) -> dict[int, Run]:
        """For each seed the run that counts: a finished one before others, then the longer, then the later one."""
        ordered = sorted(self.runs, key=lambda run: (run.state == "finished", run.step, run.written))
        return dict(sorted({run.seed: run for run in ordered}.items()))

    @property
    def finished(self) -> dict[int, Run]:
        """The finished runs by seed."""
        return {seed: run for seed, run in self.by_seed.items() if run.state == "finished"}

    @property
    def counted(self) -> dict[int, Run]:
        """The runs whose numbers are averaged: the finished ones, or while there are none, all."""
        return self.finished or self.by_seed

    def values(self, result: Result) -> dict[int, float]:
        """A number for each seed that has it."""
        return {seed: run.results[result] for seed, run in self.counted.items() if result in run.results}


@dataclass(frozen=True)
class Entry:
    """A number of a cell.

    Attributes:
        values: by seed.
        mark: how it compares with the best cell.
        against: the difference from the best cell, where there is one that can be tested.
    """

    values: Mapping[int, float]
    mark: Mark = Mark.NONE
    against: Difference | None = None

    @property
    def estimate(self) -> Estimate:
        """Over the seeds."""
        return estimate([*self.values.values()])


def cells(runs: Sequence[Run]) -> list[Cell]:
    """The runs grouped into cells, in the order of their first runs."""
    grouped: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(tuple(sorted((name, text(value)) for name, value in compared(run).items())), []).append(run)
    groups = [*grouped.values()]
    configs = [compared(group[0]) for group in groups]
    names = differing(configs)
    return [
        Cell(tuple(group), {column(name): shown_option(name, config) for name in names})
        for group, config in zip(groups, configs, strict=True)
    ]


def compared(run: Run) -> dict[str, Scalar]:
    """The options that define a cell."""
    return {
        name: value
        for name, value in run.config.items()
        if name.split(".")[0] not in NOT_COMPARED and name.split(".")[-1] != "seed"
    }


def column(name: str) -> str:
    """How an option is called on the command line."""
    return printable(name.removesuffix("._target_"))


def shown_option(name: str, config: Mapping[str, Scalar]) -> str:
    """Its value, as it is typed."""
    if name not in config:
        return ABSENT
    value = config[name]
    return option(value) if name.endswith("_target_") and isinstance(value, str) else text(value)


def differing(configs: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """The options that tell configurations apart.

    Options of a choice, such as `loss.gamma`, are left out where they follow from the choice, and so are copies of
    others, such as `callbacks.quality.sampler.steps` of `sampler.steps`.
    """
    names = [*dict.fromkeys(name for config in configs for name in config)]
    groups = [*dict.fromkeys(name.split(".")[0] for name in names)]
    names.sort(key=lambda name: groups.index(name.split(".")[0]))
    varying = [name for name in names if len({shown_option(name, config) for config in configs}) > 1]
    free = [name for name in varying if not _follows(name, varying, configs)]
    kept: dict[tuple[str, tuple[str, ...]], str] = {}
    for name in sorted(free, key=lambda name: name.count(".")):
        kept.setdefault((column(name).split(".")[-1], tuple(shown_option(name, config) for config in configs)), name)
    return [name for name in free if name in kept.values()]


def _follows(name: str, varying: Sequence[str], configs: Sequence[Mapping[str, Scalar]]) -> bool:
    """Whether an option only differs because the class that it belongs to does."""
    parts = name.split(".")
    targets = [f"{'.'.join(parts[:i])}._target_" for i in range(len(parts) - 1, 0, -1)]
    target = next((each for each in targets if each in varying and each != name), None)
    if target is None:
        return False
    values: dict[str, set[str]] = {}
    for config in configs:
        values.setdefault(shown_option(target, config), set()).add(shown_option(name, config))
    return all(len(each) == 1 for each in values.values())


def results(cells: Sequence[Cell]) -> list[Result]:
    """All numbers that some cell has."""
    return [*dict.fromkeys(result for cell in cells for run in cell.counted.values() for result in run.results)]


def entries(cells: Sequence[Cell], result: Result) -> list[Entry | None]:
    """A number of each cell, and how it compares with that of the best; None for a cell without it.

    Only cells with finished runs are compared, and only if the number means the same in all of them.
    """
    found = [Entry(values) if (values := cell.values(result)) else None for cell in cells]
    of = quantity(result.name)
    ranked = [i for i, entry in enumerate(found) if entry is not None and cells[i].finished]
    if not of.better or len(ranked) < 2 or incomparable([cells[i] for i in ranked], of, result):
        return found
    means = {i: entry.estimate.mean for i in ranked if (entry := found[i]) is not None}
    best = max(means, key=lambda i: of.better * means[i])
    ours = cells[best].values(result)
    for i in ranked:
        theirs = cells[i].values(result)
        against = difference(theirs, ours) if i != best else None
        mark = Mark.UNTESTED if against is None else Mark.WORSE if against.significant else Mark.TIED
        found[i] = Entry(theirs, Mark.BEST if i == best else mark, against)
    return found


def incomparable(cells: Sequence[Cell], of: Quantity, result: Result) -> list[str]:
    """The options that cells must share for this number to mean the same in all of them, and do not."""
    configs = [compared(cell.runs[0]) for cell in cells]
    prefixes = ("data",) if result.made and of.same else of.same
    if prefixes == OBJECTIVE and {shown_option("loss._target_", config) for config in configs} == {"vlb"}:
        prefixes = BOUND  # every parameterization and schedule estimates the same bound
    names = dict.fromkeys(name for config in configs for name in config)
    bound = [name for name in names if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)]
    return [column(name) for name in bound if len({shown_option(name, config) for config in configs}) > 1]
