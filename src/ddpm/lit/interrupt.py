"""Handling of Ctrl-C and SIGTERM."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ddpm.parallel.processes import share


class Interrupted(BaseException):
    """Raised when a signal stops training.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signal = signum


class Signals:
    """Handlers for the signals that stop a run: the first one counts, later ones are ignored.

    Attributes:
        asked: the signal received; 0 if none.
        held: whether a signal only sets `asked`, which the run checks; otherwise it raises Interrupted at once.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.held = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal interrupts at once: the resumed run can repeat it."""
        self.held = False
        try:
            if self.asked:
                raise Interrupted(self.asked)
            yield
        finally:
            self.held = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, self.asked or signum
        if first and not self.held:
            raise Interrupted(signum)
        if self.held and share().rank == 0:
            how = "stopping after this step" if first else r"the step is still running; Ctrl-\ quits without saving it"
            # not print, because the signal may arrive during another print
            os.write(2, f"\n{signal.Signals(signum).name}: {how}\n".encode())
