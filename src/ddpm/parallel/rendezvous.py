"""How the processes of a job find one another and connect.

Each process writes its rank into a store that all can reach. Once all ranks are there, they connect: with gloo on the
CPU, with NCCL between GPUs. torchrun and Slurm give the address of a store on the network. Processes that the first
one starts on its own machine share a file that no other user can read.
"""

import hmac
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ddpm.parallel.processes import Lost, share
from ddpm.parallel.share import Share

LIMIT = 300.0
"""Seconds within which separately started processes must find one another."""
WORK = timedelta(hours=6)
"""How long the other processes wait while one works alone."""
SECRET = "secret"
"""Store key of the secret by which processes of one machine authenticate one another."""
VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torchrun sets besides WORLD_SIZE."""


class Place(NamedTuple):
    """A process's rank, the world size, and the address of the store."""

    rank: int
    world: int
    address: str
    port: int


def place(environment: Mapping[str, str]) -> Place | None:
    """This process's place according to torchrun's variables; None if it is the only process.

    Raises:
        ValueError: a variable is missing or invalid.
    """
    if "WORLD_SIZE" not in environment or (world := _number(environment, "WORLD_SIZE", 1)) == 1:
        return None
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={world}, but {', '.join(missing)} is not set; start the processes with torchrun or Slurm, "
            "or unset WORLD_SIZE to run a single process"
        )
    _number(environment, "LOCAL_RANK", 0, _number(environment, "LOCAL_WORLD_SIZE", 1, world) - 1)
    rank, port = _number(environment, "RANK", 0, world - 1), _number(environment, "MASTER_PORT", 1, 2**16 - 1)
    return Place(rank, world, environment["MASTER_ADDR"], port)


def _number(environment: Mapping[str, str], name: str, least: int, most: int | None = None) -> int:
    text = environment[name]
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {allowed}, got {text!r}; leave it to torchrun or Slurm")
    return value


def join() -> Share:
    """Connect processes started by torchrun or Slurm, if there are several, once; returns this process's share.

    The tasks of a job started by a Hydra launcher call this without `commands.followers.start`.

    Raises:
        ValueError: an environment variable is missing or invalid.
        Lost: the other processes did not connect in time.
    """
    if dist.is_initialized():
        return share()
    if started_together() and "TORCHELASTIC_RUN_ID" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
        os.environ["RANK"], os.environ["LOCAL_RANK"] = str(slurm.global_rank()), str(slurm.local_rank())
        os.environ["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        os.environ["LOCAL_WORLD_SIZE"] = str(slurm.world_size() // nodes)
    at = place(os.environ)
    if at is not None:
        until = time.monotonic() + LIMIT
        store = _store(at, until)

        def late() -> None:
            if time.monotonic() > until:
                absent = ", ".join(str(rank) for rank in range(at.world) if not store.check([_key(rank)]))
                raise Lost(
                    f"process {at.rank} waited {LIMIT:.0f} s for RANK {absent} of WORLD_SIZE={at.world} to reach "
                    f"MASTER_ADDR={at.address} MASTER_PORT={at.port}; check that all were started with the same "
                    "address and port"
                )

        connect(store, at.rank, at.world, late)
    return share()


def started_together() -> bool:
    """Whether torchrun or Slurm started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def _store(at: Place, until: float) -> Store:
    """The store of torchrun, or else of rank 0, which listens on every network interface of its machine."""
    if at.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        try:
            store = TCPStore("127.0.0.1", at.port, is_master=True, wait_for_workers=False)
        except RuntimeError as error:
            raise ValueError(
                f"MASTER_PORT={at.port} is in use by another process with RANK=0 or another program; "
                "choose another port"
            ) from error
    else:
        while True:  # the store itself would print a stack trace at each attempt
            try:
                socket.create_connection((at.address, at.port), timeout=max(1.0, until - time.monotonic())).close()
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise Lost(
                        f"process {at.rank} could not reach RANK 0 at MASTER_ADDR={at.address} MASTER_PORT={at.port} "
                        f"within {LIMIT:.0f} s ({error}); check the address, and that RANK 0 was started"
                    ) from error
                time.sleep(0.2)
        wrong = f"the program at MASTER_ADDR={at.address} MASTER_PORT={at.port} does not answer like RANK 0; check both"
        timer = threading.Timer(LIMIT, _stop, [wrong])  # the store would wait forever for an answer
        timer.start()
        try:
            store = TCPStore(at.address, at.port, is_master=False, timeout=timedelta(seconds=LIMIT))
        except RuntimeError as error:
            raise Lost(wrong) from error
        finally:
            timer.cancel()
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _stop(said: str) -> None:
    print(f"error: {said}", file=sys.stderr, flush=True)
    os._exit(1)


def _key(rank: int) -> str:
    return f"rank {rank}"


def connect(store: Store, rank: int, world: int, waiting: Callable[[], None]) -> None:
    """Connect all processes that register in the store; if it holds a secret, they authenticate one another.

    Args:
        store: the store that all processes share.
        rank: rank of this process.
        world: number of processes.
        waiting: called repeatedly while processes are missing; raises to give up.

    Raises:
        ValueError: another process has the same rank or a different world size.
        Lost: the store or another process cannot be reached.
        ConnectionError: a program that does not know the secret connected in place of a process.
    """
    try:
        if store.add(_key(rank), 1) > 1:
            raise ValueError(f"two processes have RANK={rank}; give each of WORLD_SIZE={world} processes its own")
        others = store.compare_set("world", "", str(world)).decode()
        if others != str(world):
            raise ValueError(f"process {rank} has WORLD_SIZE={world}, another one {others}; use the same for all")
        while not store.check([_key(each) for each in range(world)]):
            waiting()
            time.sleep(0.05)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        store.set_timeout(timedelta(seconds=LIMIT))
        dist.init_process_group(store=store, rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT))
        if store.check([SECRET]):
            _prove(store.get(SECRET), rank, world)
    except RuntimeError as error:
        raise Lost(f"process {rank} cannot connect to the others: {str(error).splitlines()[0]}") from error
    store.set_timeout(WORK)
    group = dist.distributed_c10d._get_default_group()
    for device in group._device_types:
        group._get_backend(device)._set_default_timeout(WORK)


def _prove(secret: bytes, rank: int, world: int) -> None:
    """Check that the other end of each connection knows the secret.

    gloo accepts the first program that connects to its port as the expected process. A proof is valid only from its
    sender to its receiver.
    """

    def proof(sender: int, receiver: int) -> Tensor:
        digest = hmac.digest(secret, f"{sender} to {receiver}".encode(), "sha256")
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    others = [each for each in range(world) if each != rank]
    sent = [work for other in others if (work := dist.isend(proof(rank, other), other))]
    for other in others:
        expected = proof(other, rank)
        found = torch.empty_like(expected)
        dist.recv(found, other)
        if not hmac.compare_digest(found.numpy().tobytes(), expected.numpy().tobytes()):
            raise ConnectionError(f"the program that connected to process {rank} is not process {other}; start again")
    for work in sent:
        work.wait()
