"""Custom C++ kernels for networks on a CPU, registered as torch operators.

They are compiled on first use by the machine's own compiler and kept in the user's cache. They take channels-last
images. `operator` registers each kernel together with the same function in PyTorch operations, which takes over where
the kernel cannot be used: without a compiler, for gradients of gradients, and under torch.func.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ddpm.support.cache import kept

SOURCES = tuple(Path(__file__).with_name(name) for name in ("group_norm.cpp", "winograd.cpp"))
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
]
LIMIT = 900.0
"""Compiler timeout in seconds: 50 times what it takes on an idle core."""


def compiler() -> list[str] | None:
    """Command of the C++ compiler as a list of words, or None."""
    given = shlex.split(os.environ.get("CXX", ""))
    found = shutil.which("g++") or shutil.which("clang++")
    return given or ([found] if found else None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None without a compiler; warns once if a compiler exists but fails."""
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
        warnings.warn(f"the CPU kernels could not be compiled; using PyTorch's instead: {reason}", stacklevel=2)
        return None


def _compile(command: list[str], out: Path) -> None:
    """Run a compiler that writes to `out`, with its temporary files beside it."""
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
            os.killpg(process.pid, signal.SIGKILL)  # and its children
        process.wait()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0], stderr=said.read_text(errors="replace"))


class Kernel:
    """A C++ function, called with keyword arguments.

    They are the fields of a struct that the source file declares in the same order.

    Args:
        name: name of the function.
        pointers: names of the tensor arguments, which may be None.
        integers: names of the 64-bit integers.
        numbers: names of the doubles.
        flags: names of the booleans.
    """

    def __init__(self, name: str, pointers: str, integers: str, numbers: str = "", flags: str = "") -> None:
        kinds = {pointers: ctypes.c_void_p, integers: ctypes.c_int64, numbers: ctypes.c_double, flags: ctypes.c_bool}
        self.name = name
        self.pointers = pointers.split()
        self.fields = {field: kind for names, kind in kinds.items() for field in names.split()}
        self.structure = type(name, (ctypes.Structure,), {"_fields_": [*self.fields.items()]})

    def __call__(self, **arguments: Any) -> None:
        """Run the kernel.

        Raises:
            TypeError: an argument is missing or unknown.
            RuntimeError: its buffers cannot be allocated.
        """
        if arguments.keys() != self.fields.keys():
            raise TypeError(f"{self.name} takes {', '.join(self.fields)}, got {', '.join(arguments)}")
        tensors: list[Any] = [arguments[name] for name in self.pointers]  # kept alive until the kernel returns
        for name, each in zip(self.pointers, tensors, strict=True):
            arguments[name] = None if each is None else each.data_ptr()
        if getattr(library(), self.name)(ctypes.byref(self.structure(**arguments))):
            raise RuntimeError(f"can't allocate memory for the buffers of {self.name}")


OPERATORS: Any = torch.library.Library("ddpm", "DEF")  # type: ignore[no-untyped-call]


def operator(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    by_torch: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register an operator with torch.

    Args:
        schema: name, arguments and results in torch's schema syntax, without defaults.
        kernel: computes it on the CPU.
        fake: returns results of the same shapes, types and strides, without computing them.
        by_torch: the same function in PyTorch operations, for whatever the kernel cannot do.
        differentiable: the same function when gradients are required; `by_torch` by default.
    """
    name = schema.partition("(")[0]
    OPERATORS.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    run = getattr(torch.ops.ddpm, name).default

    def autograd(*arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return by_torch(*arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return (differentiable or by_torch)(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*arguments)

    def cpu(*arguments: Any) -> Any:
        return (by_torch if library() is None else kernel)(*arguments)

    OPERATORS.impl(name, cpu, "CPU")
    OPERATORS.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"ddpm::{name}", fake, lib=OPERATORS)
    return run


def without_gradient(run: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operator in the backward pass of another, more cheaply if nothing differentiates it again."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return run(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return run(*arguments)


def channels_last(x: Tensor) -> bool:
    """Whether images (B, C, H, W) are channels-last and not also contiguous."""
    return x.dim() == 4 and x.permute(0, 2, 3, 1).is_contiguous() and not x.is_contiguous()


def require(fits: bool, name: str, *tensors: Tensor | None) -> None:
    """Raise RuntimeError, describing the tensors, unless the operator supports them."""
    if not fits:
        given = (f"{each.dtype} {tuple(each.shape)} on {each.device}" for each in tensors if each is not None)
        raise RuntimeError(f"ddpm::{name} has no kernel for tensors of {', '.join(given)}")
