"""The processes of a job: their ranks and collective operations."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ddpm.parallel.share import Share

LOST = re.compile(
    "(?i)connection (was likely )?(closed|reset)|broken pipe|socket (unexpectedly )?closed|remote process exit"
)
"""Errors of gloo, NCCL and the store after another process has ended."""


def share() -> Share:
    """This process's rank and the world size."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()


def local_rank() -> int:
    """The rank of this process on its machine, which selects its device."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def agreed(value: Any) -> Any:
    """The leader's value, broadcast to every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def most(value: int) -> int:
    """The maximum over all processes, on every process."""
    return int(_reduced(torch.tensor(value), dist.ReduceOp.MAX))


def least(values: Tensor) -> Tensor:
    """The elementwise minimum over all processes, on every process's CPU."""
    return _reduced(values, dist.ReduceOp.MIN)


def summed(values: Tensor) -> Tensor:
    """The elementwise sum over all processes, on every process's CPU."""
    return _reduced(values, dist.ReduceOp.SUM)


def _reduced(values: Tensor, how: Any) -> Tensor:
    box = values.detach().cpu().clone()
    if dist.is_initialized():
        dist.all_reduce(box, how)
    return box


class Lost(ConnectionError):
    """Another process of this job has ended, or cannot be reached."""


@contextmanager
def losses() -> Iterator[None]:
    """Report the end of another process as a one-line error.

    Raises:
        Lost: in place of the communication library's error.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and LOST.search(str(error)):
            raise Lost("another process of this job has ended") from error
        raise
