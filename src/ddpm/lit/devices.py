"""The processes and devices of a job, in Lightning's terms."""

import os
from typing import Any

import torch
from lightning.fabric.accelerators.cpu import CPUAccelerator
from lightning.fabric.accelerators.cuda import CUDAAccelerator
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import distributed as dist

from ddpm.parallel import processes


class Joined(ClusterEnvironment):
    """A cluster environment of processes that are already connected."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise NotImplementedError("the processes are connected")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("the processes are connected")

    @staticmethod
    def detect() -> bool:
        return dist.is_initialized()

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """Do nothing: the world size is known."""

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""

    def local_rank(self) -> int:
        return processes.local_rank()

    def node_rank(self) -> int:
        return dist.get_rank() // int(os.environ["LOCAL_WORLD_SIZE"])


def devices(accelerator: str, asked: Any) -> int:
    """The number of devices requested on this machine.

    Args:
        accelerator: `cpu`, `cuda`, `gpu` or `auto`.
        asked: as Lightning's `devices`: a number, a list, a string of either, -1 or `auto`.
    """
    gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
    kind: Any = CUDAAccelerator if gpu else CPUAccelerator
    try:
        chosen = kind.auto_device_count() if asked == "auto" else kind.parse_devices(asked)
        count = len(chosen) if isinstance(chosen, list) else int(chosen or 0)
    except Exception:  # each accelerator raises a different error
        count = 0
    if count < 1:
        raise ValueError(
            f"devices={asked} is not available on {accelerator}: this machine has "
            f"{CUDAAccelerator.auto_device_count()} GPUs; give a number of at least 1, or use cpu instead of a GPU"
        )
    return count
