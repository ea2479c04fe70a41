"""A part of evaluate.py's result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm.commands.subject import Subject
from ddpm.metrics.base import Row


class Evaluation(ABC):
    """What evaluate.py computes of a checkpoint, other than metrics of samples."""

    rows: Sequence[Row] = ()
    """What to print in the table of results."""

    @abstractmethod
    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        """Check the options and find everything needed.

        Returns:
            A function of the output folder that computes the result for metrics.json and may write other files.
        Raises:
            ValueError: naming the option, what it may be, and what it is.
        """

    def of(self, found: dict[str, Any]) -> str:
        """What images or features the rows come from."""
        return f"{found['split']} images"

    def show(self, found: dict[str, Any], console: Console) -> None:
        """Print what does not fit the table."""
        return


def mark(found: dict[str, Any], value: str) -> str:
    """What to print beside a value that comes from too few images."""
    return ", unreliable" if value in found.get("unreliable", []) else ""
