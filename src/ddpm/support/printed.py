"""What a command prints, kept in a file."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""Colours and movements of the cursor."""


class Copied:
    """A stream whose text also goes into a log.

    Attributes:
        original: the stream itself.
    """

    def __init__(self, original: TextIO, log: TextIO) -> None:
        self.original = original
        self._log = log

    def write(self, text: str) -> int:
        """Write to both; the log is spared of colours."""
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
    """Append what is printed in the block, and the error that ends it, to a file; bars on a terminal are left out."""
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
