"""Kernels in C++ for networks on a CPU, compiled once, by the machine's own compiler, and kept in the user's cache.

They work on images whose channels lie innermost (`torch.channels_last`): a network of that layout uses them, another
does not. Without a compiler, on other devices and under torch.compile torch computes the same.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.files import cache, written

SOURCES = tuple(Path(__file__).with_name(name) for name in ("group_norm.cpp", "winograd.cpp"))
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
]


def compiler() -> str | None:
    """Of C++, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there is no compiler for them, which is warned of once if it is there but fails."""
    found = compiler()
    if found is None:
        return None
    about = [source.read_text() for source in SOURCES]
    about += [found, *FLAGS, torch.__version__, platform.machine(), str(torch.cpu.get_capabilities())]
    path = cache() / f"kernels_{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            with written(path) as out:
                command = [found, *FLAGS, *map(str, SOURCES), "-o", str(out)]
                subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        warnings.warn(f"the kernels for this processor could not be compiled, torch's are used: {reason}", stacklevel=2)
        return None


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
    """Run a kernel: tensors are given as the addresses of their first elements, integers as 64 bits."""
    kernels = library()
    assert kernels is not None
    kernels[name](*map(_c, arguments))


def _c(argument: Tensor | bool | int | float | None) -> object:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    kinds: dict[type, Any] = {bool: ctypes.c_bool, int: ctypes.c_int64, float: ctypes.c_double}
    return kinds[type(argument)](argument)
