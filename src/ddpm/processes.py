"""Several processes at one job: the first leads, the others follow.

The leader alone runs Hydra. It sends the resolved configuration of each job to the followers, and all carry it out
together, so that a sweep stays one sweep and a job one folder. torchrun and Slurm start all processes themselves;
otherwise the leader starts followers for every job that asks for several devices.
"""

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.accelerators.cpu import CPUAccelerator
from lightning.fabric.accelerators.cuda import CUDAAccelerator
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ddpm.entries import printable
from ddpm.share import Share

JOBS = {
    "train": ("ddpm.lit.experiment", "train"),
    "evaluate": ("ddpm.evaluate", "evaluate"),
    "sample": ("ddpm.sample", "sample"),
}
"""What each entry point carries out: module and function."""
NOTHING: dict[str, Any] = {}
"""Sent in place of a configuration when a job has nothing to do."""
GRACE = 15.0
"""Seconds that the other processes are given to end by themselves."""


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


class Joined(ClusterEnvironment):
    """Tells Lightning of the processes that are connected already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        return dist.is_initialized()

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """Nothing: it is known."""

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is known."""

    def local_rank(self) -> int:
        return local_rank()

    def node_rank(self) -> int:
        return dist.get_rank() // int(os.environ["LOCAL_WORLD_SIZE"])


def devices(accelerator: str, asked: Any) -> int:
    """How many devices of this machine are asked for.

    Args:
        accelerator: `cpu`, `cuda`, `gpu` or `auto`.
        asked: as Lightning's `devices`: a number, a list, a string of either, -1 or `auto`.
    """
    gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available())
    kind: Any = CUDAAccelerator if gpu else CPUAccelerator
    try:
        chosen = kind.auto_device_count() if asked == "auto" else kind.parse_devices(asked)
    except Exception as error:
        raise ValueError(f"devices={asked} are not to be had with accelerator={accelerator}: {error}") from error
    return len(chosen) if isinstance(chosen, list) else int(chosen or 0)


def start(entry: str, main: Callable[[], None]) -> None:
    """Run an entry point: lead, or follow the process that does.

    Args:
        entry: a key of `JOBS`.
        main: calls `lead` for each job; run by the leader alone.
    """
    if join().rank > 0:
        _follow(entry)
    else:
        main()
        agreed(None)  # no more jobs
    if dist.is_initialized():
        dist.destroy_process_group()


def lead(entry: str, cfg: DictConfig | None, wanted: int) -> Any:
    """Carry out a job on as many processes as are wanted, or as there are.

    Args:
        entry: a key of `JOBS`.
        cfg: the job's configuration; None if there is nothing to do, which the other processes wait to hear.
        wanted: processes of this machine; where torchrun or Slurm started them, these are taken.
    """
    join()
    if dist.is_initialized() or wanted == 1:
        return _carry_out(entry, cfg)
    with _followers(entry, wanted):
        result = _carry_out(entry, cfg)
        agreed(None)
    return result


def _carry_out(entry: str, cfg: DictConfig | None) -> Any:
    config = agreed(NOTHING if cfg is None else OmegaConf.to_container(cfg, resolve=True))
    if config == NOTHING:
        return None
    module, function = JOBS[entry]
    return getattr(importlib.import_module(module), function)(cfg if share().rank == 0 else OmegaConf.create(config))


def _follow(entry: str) -> None:
    """Carry out what the leader sends until it sends nothing; only errors are said aloud."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    try:
        while (config := agreed(None)) is not None:
            if config != NOTHING:
                module, function = JOBS[entry]
                getattr(importlib.import_module(module), function)(OmegaConf.create(config))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"process {share().rank}: error: {error}"))
    except RuntimeError as error:
        if "onnection" not in str(error):
            raise
        sys.exit(f"process {share().rank}: the first process has ended")


def join() -> Share:
    """Connect the processes that torchrun or Slurm has started, if there are several, once; this one's place.

    A job that a launcher of Hydra's starts comes here on each of its tasks, without `start`.
    """
    if dist.is_initialized():
        return share()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        slurm = SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
        os.environ["RANK"], os.environ["LOCAL_RANK"] = str(slurm.global_rank()), str(slurm.local_rank())
        os.environ["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        os.environ["LOCAL_WORLD_SIZE"] = str(slurm.world_size() // nodes)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        _connect()
    return share()


def _connect(**options: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(timeout=timedelta(hours=6), **options)  # what one process does alone may take long


@contextmanager
def _followers(entry: str, n: int) -> Iterator[None]:
    """n - 1 processes beside this one, connected with it, that end with it."""
    store = TCPStore("127.0.0.1", 0, n, is_master=True, wait_for_workers=False)
    threads = torch.get_num_threads()
    own = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads // n))),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # what the user's own code is found by
    }
    before = dict(os.environ)
    command = [sys.executable, "-c", "from ddpm import processes; processes.follower()", entry]
    children: list[subprocess.Popen[bytes]] = []
    done = threading.Event()
    try:
        for rank in range(1, n):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "DDPM_LEADER": str(os.getpid())}
            children.append(subprocess.Popen(command, env=before | own | ranks, stdin=subprocess.DEVNULL))
        os.environ.update(own | {"RANK": "0", "LOCAL_RANK": "0"})
        threading.Thread(target=_watch, args=(children, done), daemon=True).start()
        torch.set_num_threads(int(own["OMP_NUM_THREADS"]))
        _connect(store=store, rank=0, world_size=n)
        yield
    finally:
        done.set()
        _end(children)
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _watch(children: list[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """End this process if another has failed and this one does not notice, waiting for it."""
    while not done.wait(1.0):
        if any(child.poll() for child in children):
            if done.wait(GRACE):
                return
            print("error: another process of this job has failed; stopping", file=sys.stderr, flush=True)
            for child in children:
                child.kill()
            os._exit(1)


def follower() -> None:
    """What a follower that the leader has started runs; `sys.argv[1]` is the entry point."""
    leader, world = int(os.environ["DDPM_LEADER"]), int(os.environ["WORLD_SIZE"])
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world)
    _connect(store=store, rank=int(os.environ["RANK"]), world_size=world)
    _follow(sys.argv[1])
    dist.destroy_process_group()


def _end_with(leader: int) -> None:
    """End this process when the leader, its parent, is gone, however it went."""
    while os.getppid() == leader:
        time.sleep(1.0)
    os._exit(1)
