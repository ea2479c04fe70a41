"""The leader, the first process, and its followers: how they start, run jobs and end.

Only the leader runs Hydra. It broadcasts the resolved configuration of each job to the followers, and all processes run
the job together, so a sweep remains one sweep and a job has one folder. torchrun and Slurm start all processes
themselves; otherwise the leader starts followers for every job that requests several devices.
"""

import importlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from ddpm.commands.errors import EXPLAINED, explained, full
from ddpm.parallel import rendezvous
from ddpm.parallel.processes import Lost, agreed, losses, share
from ddpm.support.files import written

JOBS = {
    "train": ("ddpm.lit.experiment", "train"),
    "evaluate": ("ddpm.commands.evaluate", "evaluate"),
    "sample": ("ddpm.commands.sample", "sample"),
}
"""Entry point -> module and function of its job."""
NOTHING: dict[str, Any] = {}
"""Broadcast instead of a configuration when a job has nothing to do."""
GRACE = 15.0
"""Seconds that other processes get to end by themselves."""
LEFT_ALONE = 75
"""Exit status of a follower that ends because another process has ended."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""The network interface that other machines cannot reach."""
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from ddpm.commands import followers; followers.follower(*sys.argv[1:])"
)
"""The program of a follower; it uses the leader's module search path."""


def start(entry: str, main: Callable[[], None]) -> None:
    """Run an entry point as the leader or as a follower.

    Args:
        entry: a key of `JOBS`.
        main: calls `lead` for each job; only the leader runs it.
    """
    rank = rendezvous.join().rank
    if rank > 0:
        with _explained(lambda said, lost: print(f"process {rank}: {said}", file=sys.stderr)):
            _follow(entry)
    else:
        main()
        agreed(None)  # no more jobs
    if dist.is_initialized():
        dist.destroy_process_group()


def lead(entry: str, cfg: DictConfig | None, wanted: int) -> Any:
    """Run a job on the requested number of processes, or on those already connected.

    Args:
        entry: a key of `JOBS`.
        cfg: the job's configuration; None, also sent to the followers, if there is nothing to do.
        wanted: number of processes on this machine; ignored if torchrun or Slurm started them.
    """
    rendezvous.join()
    if dist.is_initialized() or wanted == 1:
        return _carry_out(entry, cfg)
    with _followers(entry, wanted):
        result = _carry_out(entry, cfg)
        agreed(None)
    return result


def _carry_out(entry: str, cfg: DictConfig | None) -> Any:
    with losses():
        config = agreed(NOTHING if cfg is None else OmegaConf.to_container(cfg, resolve=True))
        return None if config == NOTHING else _job(entry, cfg if share().rank == 0 else OmegaConf.create(config))


def _follow(entry: str) -> None:
    """Run the jobs that the leader sends until it sends None; print nothing but errors."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    with losses():
        while (config := agreed(None)) is not None:
            if config != NOTHING:
                _job(entry, OmegaConf.create(config))


@contextmanager
def _explained(tell: Callable[[str, bool], object]) -> Iterator[None]:
    """Exit this follower with one line on a user error, as the leader does.

    Args:
        tell: called with the line, and whether it was another process that failed.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        lost = isinstance(error, Lost)
        if not isinstance(error, EXPLAINED) or (full() and not lost):
            raise
        tell(explained(error), lost)
        sys.exit(LEFT_ALONE if lost else 1)


def _job(entry: str, cfg: Any) -> Any:
    module, function = JOBS[entry]
    return getattr(importlib.import_module(module), function)(cfg)


@contextmanager
def _followers(entry: str, n: int) -> Iterator[None]:
    """Run n - 1 other processes, connected with this one, for the duration of a block.

    Raises:
        ChildProcessError: with the error message of a process that failed, or how it ended.
    """
    threads = torch.get_num_threads()
    own = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads // n))),
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
    }
    before = dict(os.environ)
    done, team = threading.Event(), _Team()
    try:
        os.environ.update(own)
        store = FileStore(str(team.folder / "store"), n)
        store.set(rendezvous.SECRET, secrets.token_hex())
        team.start(entry, n)
        torch.set_num_threads(int(own["OMP_NUM_THREADS"]))
        threading.Thread(target=_watch, args=(team, done), daemon=True).start()
        rendezvous.connect(store, 0, n, team.check)
        yield
        team.end(GRACE)
    except Lost:
        team.check(GRACE)
        raise
    finally:
        done.set()
        team.end(0.0)
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


class _Team:
    """The followers of one job, and the folder that they share with the leader."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ddpm_"))  # no other user can enter it
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, entry: str, n: int) -> None:
        """Start n - 1 processes."""
        interpreter = [sys.executable, *subprocess._args_from_interpreter_flags(), "-P", "-c", PROGRAM]  # type: ignore[attr-defined]
        command = [*interpreter, json.dumps(sys.path), entry, str(self.folder), str(os.getpid())]
        for rank in range(1, n):
            environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.children.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))

    def check(self, grace: float = 0.0) -> None:
        """Raise an error if a follower has failed; wait up to `grace` seconds for its cause.

        Raises:
            ChildProcessError: with the error message of a follower that failed, or how it ended.
        """
        until = time.monotonic() + grace
        while not (found := self._causes()) and time.monotonic() < until:
            time.sleep(0.05)
        ended = {rank: child.poll() for rank, child in enumerate(self.children, 1)}
        found += [f"process {rank} lost the other processes" for rank, code in ended.items() if code == LEFT_ALONE]
        if found:
            raise ChildProcessError(found[0])

    def _causes(self) -> list[str]:
        said = [file.read_text() for file in sorted(self.folder.glob("*.error"))]
        for rank, child in enumerate(self.children, 1):
            code = child.poll()
            if code is not None and code not in (0, LEFT_ALONE):
                how = f"status {code}" if code > 0 else signal.Signals(-code).name
                said.append(f"process {rank} ended with {how}")
        return said

    def end(self, grace: float) -> None:
        """Wait up to `grace` seconds for the followers to end, kill the rest, and remove the folder."""
        until = time.monotonic() + grace
        for child in self.children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _watch(team: _Team, done: threading.Event) -> None:
    """End this process if a follower has failed while this process is stuck waiting for it."""
    while not done.wait(1.0):
        if any(child.poll() for child in team.children):
            if done.wait(GRACE):
                return
            try:
                team.check()
            except ChildProcessError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            team.end(0.0)
            os._exit(1)


def follower(entry: str, folder: str, leader: str) -> None:
    """The main function of a follower that the leader started."""
    watch = threading.Thread(target=_end_with, args=(int(leader), folder), daemon=True)
    watch.start()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def tell(said: str, lost: bool) -> None:
        if lost:
            watch.join(GRACE)  # cleans up if the leader is gone
        else:
            with written(Path(folder) / f"{rank}.error") as temporary:
                temporary.write_text(f"process {rank}: {said.removeprefix('error: ')}")

    with _explained(tell):
        rendezvous.connect(FileStore(f"{folder}/store", world), rank, world, lambda: None)
        _follow(entry)
    dist.destroy_process_group()


def _end_with(leader: int, folder: str) -> None:
    """End this process once the leader, its parent, is gone for whatever reason, and remove the folder."""
    while os.getppid() == leader:
        time.sleep(1.0)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
