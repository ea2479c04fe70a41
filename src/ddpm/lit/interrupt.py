"""Ctrl-C and SIGTERM."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ddpm.parallel.processes import share


class Interrupted(BaseException):
    """Training was asked to stop, and what had been reached is in a checkpoint.

    Attributes:
        signal: which signal asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signal = signum


class Signals:
    """The signals that ask a run to stop: the first is obeyed, further ones change nothing.

    Attributes:
        asked: the signal that has come; 0 if none has.
        held: whether whoever runs looks at `asked` in time; otherwise the signal raises Interrupted where it comes.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.held = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal may cut, since it can be repeated from the last checkpoint."""
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
            how = "stopping after this step" if first else r"the step is not done yet; Ctrl-\ ends without saving it"
            # print is not to be used amid another print, where a signal may come
            os.write(2, f"\n{signal.Signals(signum).name}: {how}\n".encode())
