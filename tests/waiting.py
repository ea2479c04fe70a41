"""Waits that are bounded by what is waited for: a process that works is waited for, however slow it is."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

SECONDS = 120.0
"""A process and all that it has started are stuck if they have done nothing for so long."""
MARK = "DDPM_WAITED_FOR"


def with_modules(folder):
    """The environment, in which modules of a folder are found first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def run(command, **options):
    """As subprocess.run, with the output as text."""
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    stdout, stderr = finish(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def start(command, env=os.environ, **options):
    """As subprocess.Popen; what it starts inherits a mark by which it is found, and which others may share."""
    mark = env.get(MARK) or str(uuid.uuid4())
    process = subprocess.Popen(command, env={**env, MARK: mark}, **options)
    process.mark = f"{MARK}={mark}".encode()
    return process


def finish(process):
    """Waits for the end; what the process still writes."""
    progress = _Progress(process)
    while True:
        try:
            return process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            progress.check()


def until(condition, process):
    """Waits for a condition that the process brings about."""
    progress = _Progress(process)
    while not condition():
        assert process.poll() is None, process.communicate()
        progress.check()
        time.sleep(0.01)


def gone(process):
    """Waits for the end of all that a process, which has ended, has started."""
    progress = _Progress(process)
    while _descendants(process.mark):
        progress.check()
        time.sleep(0.05)


class _Progress:
    """Whether the processes that bear a mark come and go or take processors' time."""

    def __init__(self, process):
        self.process, self.seen, self.since = process, _descendants(process.mark), time.monotonic()

    def check(self):
        """Ends them, and fails, if they have not for a long time."""
        if time.monotonic() - self.since < SECONDS:
            return
        before, self.seen, self.since = self.seen, _descendants(self.process.mark), time.monotonic()
        if before.keys() == self.seen.keys() and sum(self.seen.values()) - sum(before.values()) < 0.005 * SECONDS:
            for pid in self.seen:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{self.process.args} is stuck; it said {self.process.communicate()}")


def _descendants(mark):
    """The processes that bear a mark, and the seconds of processors' time that each has taken."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return found
