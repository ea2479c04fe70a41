"""Custom kernels: operators of torch for networks on a CPU, written in C++.

The machine's own compiler compiles them at the first use, and the user's cache keeps them. They compute channels-last
images. `operator` registers each with torch, together with the same function in torch's operations, which takes over
where the kernel cannot be used: without a compiler, for derivatives of gradients, and for those of torch.func.
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


class Kernel:
    """A function in C++, called by the names of its arguments.

    They are the fields of a struct, which the source file declares in this order.

    Args:
        name: of the function.
        pointers: names of tensors, which may be None.
        integers: names of numbers in 64 bits.
        numbers: names of numbers in double precision.
        flags: names of truth values.
    """

    def __init__(self, name: str, pointers: str, integers: str, numbers: str = "", flags: str = "") -> None:
        kinds = {pointers: ctypes.c_void_p, integers: ctypes.c_int64, numbers: ctypes.c_double, flags: ctypes.c_bool}
        self.name = name
        self.pointers = pointers.split()
        self.fields = {field: kind for names, kind in kinds.items() for field in names.split()}
        self.structure = type(name, (ctypes.Structure,), {"_fields_": [*self.fields.items()]})

    def __call__(self, **arguments: Any) -> None:
        """Run it.

        Raises:
            TypeError: an argument is missing or unknown.
            RuntimeError: there is no memory for its buffers.
        """
        if arguments.keys() != self.fields.keys():
            raise TypeError(f"{self.name} takes {', '.join(self.fields)}, got {', '.join(arguments)}")
        tensors: list[Any] = [arguments[name] for name in self.pointers]  # which stay until the kernel returns
        for name, each in zip(self.pointers, tensors, strict=True):
            arguments[name] = None if each is None else each.data_ptr()
        if getattr(library(), self.name)(ctypes.byref(self.structure(**arguments))):
            raise RuntimeError(f"can't allocate memory: not enough of it is left for the buffers of {self.name}")


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
        schema: its name, arguments and results as torch writes them, without defaults.
        kernel: computes it on the CPU.
        fake: returns results of the same shapes, types and strides, without computing them.
        by_torch: the same function in torch's operations, for all that the kernel cannot do.
        differentiable: the same function where its gradient is asked for; `by_torch` by default.
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
    """What an operator returns within the gradient of another, at less cost if nothing differentiates it again."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return run(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return run(*arguments)


def channels_last(x: Tensor) -> bool:
    """Whether images (B, C, H, W) have this layout and no other."""
    return x.dim() == 4 and x.permute(0, 2, 3, 1).is_contiguous() and not x.is_contiguous()


def require(fits: bool, name: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError, which describes the tensors, unless the operator of that name fits them."""
    if not fits:
        given = (f"{each.dtype} {tuple(each.shape)} on {each.device}" for each in tensors if each is not None)
        raise RuntimeError(f"ddpm::{name} has no kernel for tensors of {', '.join(given)}")
