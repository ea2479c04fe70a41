"""Memory that is freed and taken again is not faulted in again, unless the environment says so."""

import os
import platform
import subprocess
import sys

import pytest

from ddpm.kernels import allocator

PROGRAM = """
import resource
from ddpm.kernels import allocator
allocator.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted(faults() for _ in range(8))[4])
"""


def faults(**environment):
    kept = {name: value for name, value in os.environ.items() if name not in allocator.CHOSEN}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=kept | environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
def test_freed_memory_is_kept_unless_the_environment_decides():
    pages = 2**26 // 2**21  # of the largest size that a system may choose by itself
    assert faults() < pages / 2 or platform.libc_ver()[0] != "glibc"
    assert faults(MALLOC_TOP_PAD_="131072") > pages / 2


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("linux", object())])
def test_other_systems_are_left_alone(monkeypatch, platform, library):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    allocator.keep_memory()
