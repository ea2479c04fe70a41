"""Progress reports: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0
"""Time between progress lines when the output is not a terminal."""


class Lines(tqdm):
    """A tqdm bar that prints lines instead: at most one every `SECONDS`, and a last one if `leave` is set."""

    disable: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if one is due."""
        if time.monotonic() - self._said >= SECONDS:
            self._say()
        return True

    def close(self) -> None:
        """Close without erasing anything."""
        if self.disable:
            return
        if self.leave:
            self._say()
        self.disable = True
        self._decr_instances(self)

    def _say(self) -> None:
        self._said = time.monotonic()
        known = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar_format = "{desc}: " + (known if self.total else "{n_fmt} [{elapsed}{postfix}]")
        print(str(self), file=self.fp, flush=True)


def terminal() -> TextIO:
    """The original standard error, on which bars are drawn so that they do not reach the log file."""
    return getattr(sys.stderr, "original", sys.stderr)


def bar(description: str, total: int | None, show: bool = True, **options: Any) -> tqdm:
    """A progress bar, or progress lines if standard error is not a terminal.

    Args:
        description: short label of the work.
        total: expected number of steps; None if unknown.
        show: whether to show progress.
        options: passed to tqdm.
    """
    if terminal().isatty():
        return tqdm(desc=description, total=total, disable=not show, file=terminal(), dynamic_ncols=True, **options)
    return Lines(desc=description, total=total, disable=not show, file=sys.stderr, **options)


class Steps:
    """A progress bar that advances with each call and disappears at the end.

    Args:
        what: short label of the work.
        total: expected number of calls; None if unknown.
        show: whether to show progress.
    """

    def __init__(self, what: str, total: int | None, show: bool = True) -> None:
        self.bar = bar(what, total, show, leave=False, mininterval=0.5)

    def __enter__(self) -> "Steps":
        return self

    def __call__(self) -> None:
        self.bar.update()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
