"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0
"""Between two lines, where output is not a terminal."""


class Lines(tqdm):
    """Progress as whole lines, at most one in `SECONDS`, and a last one if the bar would be left."""

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
        """End; there is nothing to wipe out."""
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
    """Where bars are drawn: standard error itself, which a file that keeps what is printed does not see."""
    return getattr(sys.stderr, "original", sys.stderr)


def bar(description: str, total: int | None, show: bool = True, **options: Any) -> tqdm:
    """A progress bar, or lines where standard error is not a terminal.

    Args:
        description: of the work, a word or two.
        total: number of steps to come; None if it is not known.
        show: whether to show it.
        options: of tqdm.
    """
    if terminal().isatty():
        return tqdm(desc=description, total=total, disable=not show, file=terminal(), dynamic_ncols=True, **options)
    return Lines(desc=description, total=total, disable=not show, file=sys.stderr, **options)


class Steps:
    """Progress that counts calls and disappears when the work is done.

    Args:
        what: the work, a word or two.
        total: number of calls to come; None if it is not known.
        show: whether to show it.
    """

    def __init__(self, what: str, total: int | None, show: bool = True) -> None:
        self.bar = bar(what, total, show, leave=False, mininterval=0.5)

    def __enter__(self) -> "Steps":
        return self

    def __call__(self) -> None:
        self.bar.update()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
