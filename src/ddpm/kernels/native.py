"""Kernels in C++ for networks on a CPU, compiled once, by the machine's own compiler, and kept in the user's cache.

They work on images whose channels lie innermost (`torch.channels_last`): a network of that layout uses them, another
does not. Whatever else they do not serve torch computes, to the same, or refuses: without a compiler, on other devices,
under torch.compile, for other shapes and types, and where more is asked for than results and first derivatives.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ddpm.support.cache import kept

SOURCES = tuple(Path(__file__).with_name(name) for name in ("group_norm.cpp", "winograd.cpp"))
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
]
ORDINARY = {Tensor, nn.Parameter}
"""Of tensors, the classes that stand for numbers in memory alone."""
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


def serves(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether kernels can take the place of torch for images (B, C, H, W), with these parameters.

    All are there, ordinary tensors on the CPU, the channels of the images lie innermost, and torch's operations are not
    `watched`.
    """
    return (
        not watched()
        and all(
            isinstance(each, Tensor) and type(each) in ORDINARY and each.device.type == "cpu"
            for each in (x, *parameters)
        )
        and x.layout == torch.strided
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and library() is not None
    )


def watched() -> bool:
    """Whether torch's operations are recorded or transformed, which those of a kernel would escape.

    By torch.compile, jit.trace, a dispatch mode (make_fx, counters of operations), torch.func, forward derivatives.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def left_to_torch(dy: Tensor) -> bool:
    """Whether the gradient dy is to be followed by `gradients`: to be differentiated again, in batches, or watched."""
    return torch.is_grad_enabled() or watched() or torch._C._functorch.is_legacy_batchedtensor(dy)


def gradients(
    operation: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """Of the inputs that need one, by torch: they can be differentiated again, and batched.

    Args:
        operation: in torch, what a kernel computed of the inputs.
        inputs: as they were saved.
        needed: which of them need a gradient.
        dy: the gradient of the result.
    """
    again = torch.is_grad_enabled()
    wanted = [each for each, need in zip(inputs, needed, strict=True) if need and each is not None]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        found = iter(torch.autograd.grad(operation(*inputs), wanted, dy, create_graph=again))
    return [next(found) if need else None for need in needed]


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
