"""A study: a sweep over the cells of a table, with seeds, that ends in a report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper


class Study(Sweeper):
    """Hydra's basic sweeper, for each of several cells.

    Jobs are ordered by the swept options first and by cell second, so every cell gets its first seed early. A job is an
    ordinary run: it is not told the study, whose file therefore holds settings of the sweep only.

    Args:
        max_batch_size: jobs that the launcher is given at a time; None for all.
        params: option -> values separated by commas, in addition to what is typed.
        cells: the options of each cell.
    """

    def __init__(
        self, max_batch_size: int | None, params: Mapping[str, str], cells: Sequence[Mapping[str, Any]]
    ) -> None:
        self.basic = BasicSweeper(max_batch_size, dict(params))
        self.basic.split_arguments = self.split_arguments  # type: ignore[method-assign]
        self.cells = cells

    def setup(self, **context: Any) -> None:
        """Take Hydra's context, task and configuration."""
        self.basic.setup(**context)

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job; a study then writes its report, even if a job has failed."""
        config = self.basic.config
        assert config is not None
        try:
            return self.basic.sweep(arguments)
        finally:
            if config.hydra.runtime.choices.get("study") not in (None, "null"):
                from ddpm.reporting import command
                from ddpm.setup.run_folder import found

                evaluated = config.hydra.job.config_name == "evaluate"
                folder = found(config.ckpt).parent if evaluated else Path(config.hydra.sweep.dir)
                print(command.write([folder], folder / "report.html", "python train.py", None))

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The overrides of each job, in batches."""
        cells = [[f"{key}={_typed(value)}" for key, value in cell.items()] for cell in self.cells]
        (combinations,) = BasicSweeper.split_arguments(
            [each for each in overrides if each.key_or_group != "study"], None
        )
        jobs = [[*cell, *combination] for combination in combinations for cell in cells]
        return [*BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
