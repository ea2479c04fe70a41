"""Processes meet as they were meant to, or say within a stated time what is wrong; strangers do not take a place."""

import ast
import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import waiting
from torch import distributed as dist

from ddpm.commands import cli, followers
from ddpm.parallel import module_path, rendezvous
from ddpm.parallel.processes import Lost

RIGHT = {
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_the_variables_of_torchrun_say_where_a_process_stands():
    assert rendezvous.place(RIGHT) == (3, 4, "node0", 29500)
    assert rendezvous.place({}) is rendezvous.place(RIGHT | {"WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "4"}, "RANK must be an integer from 0 to 3, got '4'"),
        ({"RANK": "-1"}, "RANK must be an integer from 0 to 3, got '-1'"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK must be an integer from 0 to 1, got '2'"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE must be an integer from 1 to 4, got '5'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer at least 1, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be an integer at least 1, got '0'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be an integer from 1 to 65535, got 'http'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT must be an integer from 1 to 65535, got '70000'"),
        ({"RANK": "", "MASTER_ADDR": ""}, "WORLD_SIZE=4, but RANK, MASTER_ADDR is not set"),
    ],
)
def test_wrong_variables_of_torchrun_are_one_line_at_once(monkeypatch, wrong, said):
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "HYDRA_FULL_ERROR", cli.FULL):
        monkeypatch.setenv(name, "")
    for name, value in (RIGHT | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        cli.start("train", lambda: None)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ("0", r"process 0 waited 1 s for RANK 1, 2 of WORLD_SIZE=3 to reach MASTER_ADDR=127.0.0.1 MASTER_PORT="),
        ("1", r"process 1 could not reach RANK 0 at MASTER_ADDR=127.0.0.1 MASTER_PORT=.* within 1 s .*refused"),
    ],
)
def test_who_does_not_come_is_named_after_a_stated_time(monkeypatch, port, rank, said):
    monkeypatch.setattr(rendezvous, "LIMIT", 1.0)
    here = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (here | {"RANK": rank, "LOCAL_RANK": rank}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Lost, match=said):
        rendezvous.join()
    assert not dist.is_initialized()


def test_a_port_that_is_taken_is_refused_at_once(port):
    with (
        socket.create_server(("0.0.0.0", int(port))),
        pytest.raises(ValueError, match=f"^MASTER_PORT={port} is in use by another process with RANK=0 or"),
    ):
        rendezvous._store(rendezvous.Place(0, 2, "127.0.0.1", int(port)), time.monotonic())


def test_two_processes_of_one_rank_and_other_counts_are_refused_at_once():
    store = dist.HashStore()
    store.add("rank 1", 1)
    with pytest.raises(ValueError, match="two processes have RANK=1; give each of WORLD_SIZE=3 processes its own"):
        rendezvous.connect(store, 1, 3, lambda: None)
    store.set("world", "3")
    with pytest.raises(ValueError, match="process 0 has WORLD_SIZE=2, another one 3; use the same for all"):
        rendezvous.connect(store, 0, 2, lambda: None)


# ---------------------------------------------------------------- strangers


def own_port():
    """The port at which this process listens on the loopback address, once it does."""
    while True:
        own = {os.path.realpath(f"/proc/self/fd/{fd}").rpartition("/")[2] for fd in os.listdir("/proc/self/fd")}
        for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()):
            if row[3] == "0A" and row[1].startswith("0100007F") and f"socket:[{row[9]}]" in own:
                return int(row[1].partition(":")[2], 16)


def second(path, come):
    """The second of two processes: it is where they meet, and connects a little later."""
    connect = dist.init_process_group
    dist.init_process_group = lambda **options: come.wait() and connect(**options)
    with contextlib.suppress(OSError):
        rendezvous.connect(dist.FileStore(path, 2), 1, 2, lambda: None)


def test_a_stranger_that_connects_first_does_not_take_the_place_of_a_follower(monkeypatch, tmp_path):
    """gloo lets him in wherever the process that is attacked waits for the other, which is half of the times."""
    monkeypatch.setattr(rendezvous, "LIMIT", 2.0)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", followers.LOOPBACK)
    fork = multiprocessing.get_context("fork")
    refused = 0
    for attempt in range(20):
        path, come = str(tmp_path / str(attempt)), fork.Event()
        store = dist.FileStore(path, 2)
        store.set(rendezvous.SECRET, "known to both")
        strangers = []

        def intrude(strangers=strangers, come=come):
            port = own_port()
            for number in range(4):  # gloo's name of the connection
                strangers.append(socket.create_connection(("127.0.0.1", port)))
                strangers[-1].sendall(number.to_bytes(8, sys.byteorder))
            come.set()

        child = fork.Process(target=second, args=(path, come), daemon=True)
        child.start()
        thread = threading.Thread(target=intrude)
        thread.start()
        try:
            rendezvous.connect(store, 0, 2, lambda: None)
        except OSError:
            refused += 1
        finally:
            thread.join()
            child.kill()
            child.join()
            for each in strangers:
                each.close()
            if dist.is_initialized():
                dist.destroy_process_group()
        if refused:
            return
    raise AssertionError("a stranger in place of a follower was not noticed")


def test_processes_without_the_secret_are_refused(monkeypatch):
    sent = {}
    monkeypatch.setattr(dist, "isend", lambda tensor, to: sent.update({to: tensor}))
    monkeypatch.setattr(dist, "recv", lambda tensor, of: tensor.copy_(sent[of]))  # what was sent comes back
    with pytest.raises(ConnectionError, match="the program that connected to process 0 is not process 1"):
        rendezvous._prove(b"secret", 0, 2)


# ---------------------------------------------------------------- followers


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("exit 3", "ended with status 3"),
        ("kill -KILL $$", "ended with SIGKILL"),
        (f"exit {followers.LEFT_ALONE}", "lost the other processes"),
        ("exit 0", None),
    ],
)
def test_it_is_said_why_or_how_a_follower_has_ended(code, said):
    team = followers._Team()
    try:
        team.children = [subprocess.Popen(["sh", "-c", "exit 0"]), subprocess.Popen(["sh", "-c", code])]
        for child in team.children:
            child.wait()
        if said is None:
            team.check()
        else:
            with pytest.raises(ChildProcessError, match=f"^process 2 {said}$"):
                team.check()
            (team.folder / "1.error").write_text("process 1: its reason")
            with pytest.raises(ChildProcessError, match=r"^process 1: its reason$"):
                team.check()
        assert team.folder.stat().st_mode & 0o077 == 0
    finally:
        team.end(0.0)
    assert not team.folder.exists()


def test_a_follower_whose_leader_was_killed_clears_up_behind_it(monkeypatch, tmp_path):
    folder, (seen, tell) = tmp_path / "shared", os.pipe()
    folder.mkdir()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")

    def lost(*given):
        os.write(tell, b"x")
        raise Lost("the leader has ended")

    monkeypatch.setattr(rendezvous, "connect", lost)
    if not (leader := os.fork()):
        leader = os.getpid()
        if not os.fork():
            try:
                followers.follower("sample", str(folder), str(leader))
            finally:
                os._exit(0)
        os.close(tell)
        os.read(seen, 1)
        time.sleep(0.5)  # the follower knows before the system has parted them
        os._exit(0)
    os.close(tell)
    os.waitpid(leader, 0)
    while os.read(seen, 1):  # until the follower has ended too
        pass
    os.close(seen)
    assert not folder.exists()


@pytest.mark.parametrize("way", [("-c", "import sys; print(sys.path)"), ("-m", "shown")])
def test_what_is_started_finds_modules_beside_the_script_and_none_in_the_current_folder(monkeypatch, tmp_path, way):
    script, here = tmp_path / "script", tmp_path / "here"
    for folder in (script, here):
        folder.mkdir()
        (folder / "shown.py").write_text("import sys; print(sys.path)")
    monkeypatch.setattr(sys, "path", [str(script), *sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    module_path.hand_down()
    found = ast.literal_eval(subprocess.check_output([sys.executable, *way], cwd=here, text=True))
    assert found[:2] == [str(script), str(here / "elsewhere")]
    assert not {"", str(here)} & {*found}


# ---------------------------------------------------------------- the tests themselves


def test_no_test_waits_for_a_process_by_a_clock():
    for file in Path(__file__).parents[1].rglob("*.py"):
        if file.name != "waiting.py":
            assert not re.search(r"timeout=\d|monotonic\(\) [+<]", file.read_text()), file


def test_a_process_that_is_stuck_is_ended(monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS", 0.5)
    process = waiting.start(["sleep", "1000"], stdout=subprocess.PIPE)
    with pytest.raises(AssertionError, match="is stuck"):
        waiting.finish(process)
    waiting.gone(process)
