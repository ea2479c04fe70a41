"""Copy a command's output into a log file."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""Colours and cursor movements."""


class Copied:
    """A stream that also writes to a log.

    Attributes:
        original: the wrapped stream.
    """

    def __init__(self, original: TextIO, log: TextIO) -> None:
        self.original = original
        self._log = log

    def write(self, text: str) -> int:
        """Write to both; the log gets no colours."""
        self._log.write(ESCAPES.sub("", text))
        return self.original.write(text)

    def flush(self) -> None:
        """Flush both."""
        self._log.flush()
        self.original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Append the block's output, and any error that ends it, to a file; bars on a terminal are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", buffering=1) as log,
        redirect_stdout(Copied(sys.stdout, log)),
        redirect_stderr(Copied(sys.stderr, log)),
    ):
        try:
            yield
        except Exception:
            log.write(traceback.format_exc())
            raise
