"""Several processes at one job: what they are to one another, and what they share."""

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
"""What gloo, NCCL and the store say when another process has ended."""


def share() -> Share:
    """This process among all."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()


def local_rank() -> int:
    """The place of this process on its machine, which is that of its device."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def agreed(value: Any) -> Any:
    """The leader's value, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def most(value: int) -> int:
    """The largest value of all processes, on every process."""
    return int(_reduced(torch.tensor(value), dist.ReduceOp.MAX))


def least(values: Tensor) -> Tensor:
    """The smallest of each value over all processes, on every process's CPU."""
    return _reduced(values, dist.ReduceOp.MIN)


def summed(values: Tensor) -> Tensor:
    """The sum of each value over all processes, on every process's CPU."""
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
    """While processes work together: that another one has ended is an error of one line.

    Raises:
        Lost: in place of what the library for communication says.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and LOST.search(str(error)):
            raise Lost("another process of this job has ended") from error
        raise
