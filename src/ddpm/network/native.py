"""Kernels in C++ for networks on a CPU, compiled once, by the machine's own compiler, and kept in the user's cache.

They work on images whose channels lie innermost (`torch.channels_last`): a network of that layout uses them, another
does not. Without a compiler, on other devices and under torch.compile torch computes the same.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.cache import kept

SOURCES = tuple(Path(__file__).with_name(name) for name in ("group_norm.cpp", "winograd.cpp"))
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
]
LIMIT = 900.0
"""Seconds after which a compiler is given up: 50 times what it takes on a core that nothing else uses."""


def compiler() -> list[str] | None:
    """Of C++, the words of its command, or None."""
    given = shlex.split(os.environ.get("CXX", ""))
    found = shutil.which("g++") or shutil.which("clang++")
    return given or ([found] if found else None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there is no compiler for them, which is warned of once if it is there but fails."""
    try:
        found = compiler()
        if found is None:
            return None
        about = [source.read_text() for source in SOURCES]
        about += [*found, *FLAGS, torch.__version__, platform.machine(), str(torch.cpu.get_capabilities())]
        name = f"kernels_{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"
        return ctypes.CDLL(str(kept(name, functools.partial(_compile, [*found, *FLAGS, *map(str, SOURCES)]))))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        lines = ((getattr(error, "stderr", None) or "").strip() or str(error)).splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        warnings.warn(f"the kernels for this processor could not be compiled, torch's are used: {reason}", stacklevel=2)
        return None


def _compile(command: list[str], out: Path) -> None:
    """Run a compiler, which writes to `out`, and its temporary files beside it."""
    said = out.with_name("errors")
    with said.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "-o", str(out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "TMPDIR": str(out.parent)},
            process_group=0,
        )
    try:
        process.wait(LIMIT)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
        process.wait()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0], stderr=said.read_text(errors="replace"))


def serves(x: Tensor) -> bool:
    """Whether images (B, C, H, W) are such that the kernels work on them."""
    return (
        x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def call(name: str, *arguments: Tensor | bool | int | float | None) -> None:
    """Run a kernel: tensors are given as the addresses of their first elements, integers as 64 bits.

    Raises:
        RuntimeError: there is no memory for its buffers.
    """
    kernels = library()
    assert kernels is not None
    if kernels[name](*map(_c, arguments)):
        raise RuntimeError(f"can't allocate memory: not enough of it is left for the buffers of {name}")


def _c(argument: Tensor | bool | int | float | None) -> object:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    kinds: dict[type, Any] = {bool: ctypes.c_bool, int: ctypes.c_int64, float: ctypes.c_double}
    return kinds[type(argument)](argument)
