"""Killed anywhere, a run goes on to what an uninterrupted one is, to the last bit; what is whole stays whole."""

import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import waiting
from same import assert_same

from ddpm.commands import followers
from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.experiment import experiment
from ddpm.lit.module import DDPM
from ddpm.parallel import rendezvous
from ddpm.setup.run_folder import trim
from ddpm.setup.shell import quoted
from ddpm.support.files import written

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("DDPM_KILLS", "2"))  # 20 in the nightly form
STEPS = max(60, 15 * KILLS)  # a kill comes after at most a dozen steps
OPTIONS = (
    *("time_sampler=importance", "time_sampler.history=1", "network.dropout=0.1", "data.flip=true"),
    *("trainer.log_every_n_steps=7", "trainer.val_check_interval=10", "trainer.limit_val_batches=1"),
    *(f"trainer.max_steps={STEPS}", "callbacks.checkpoint.every_n_steps=1"),
    *("network.multipliers=[1]", "network.attention=[]"),
)

PROBE = """
import os, signal, time, lightning

class KillWhileWriting(lightning.Callback):
    '''Ends the process amid the nth checkpoint: it is written, but has not taken its place.'''

    def __init__(self, n):
        self.left, fsync = 2 * n - 1, os.fsync  # each time that of the file and that of its folder

        def counted(handle):
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = counted

class Slow(lightning.Callback):
    '''Takes a while for each step, and does not go beyond twelve.'''

    def on_train_start(self, trainer, module):
        self.left = 12

    def on_train_batch_end(self, trainer, *args):
        self.left -= 1
        while self.left <= 0:
            time.sleep(1)
        time.sleep(0.05)

class Held(lightning.Callback):
    '''Does not go beyond the tenth step until there is a signal.'''

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step != 10:
            return
        seen = []
        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(signum)
            signal.signal(signum, lambda *given, before=before: (seen.append(given), before(*given)))
        open(f"{trainer.default_root_dir}/held", "w").close()
        while not seen:
            time.sleep(0.01)
"""


def arguments(bare, folder, *more):
    return [sys.executable, str(ROOT / "train.py"), *bare, *OPTIONS, f"hydra.run.dir={quoted(folder)}", *more]


@pytest.fixture
def env(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    return waiting.with_modules(tmp_path) | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}


def run(typed, env, code=0, **options):
    done = waiting.run(typed, env=env, **options)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


def started(typed, env, folder):
    """A run that has written its first checkpoint."""
    process = waiting.start(typed, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waiting.until((folder / "last.ckpt").exists, process)
    return process


def logged(folder):
    """What metrics.csv holds, in order, but for speed and time."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    timed = ("images_per_second", "seconds")
    return [{key: value for key, value in row.items() if value and key not in timed} for row in rows]


def content(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_same_run(folder, whole):
    """Raw and averaged weights, optimizer, the time sampler's history, losses that are not logged yet, and the log."""
    cut, uncut = content(folder), content(whole)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "unlogged", "ddpm_config"):
        assert_same(cut[part], uncut[part], part)
    assert logged(folder) == logged(whole)


@pytest.fixture(scope="module")
def whole(bare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(arguments(bare, folder), os.environ | {"OMP_NUM_THREADS": "1"})
    assert content(folder)["state_dict"]["time_sampler.count"].min() >= 1
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(bare, whole, env, tmp_path):
    folder, dice = tmp_path / "run", random.Random(0)
    kills = resumed = 0
    while True:
        ckpt = [f"ckpt={folder}/last.ckpt"] if (folder / "last.ckpt").exists() else []
        slow = "+callbacks.slow._target_=probe.Slow"
        if kills == KILLS:
            run(arguments(bare, folder, *ckpt), env)
            break
        before = content(folder)["global_step"] if ckpt else -1
        process = started(arguments(bare, folder, slow, *ckpt), env, folder)
        waiting.until(lambda before=before: content(folder)["global_step"] > before, process)  # it has gone on
        time.sleep(dice.uniform(0, 0.25))
        process.kill()
        process.communicate()
        kills += 1
        resumed += content(folder)["global_step"] < STEPS
    assert resumed == KILLS
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_the_one_before_is_whole(bare, whole, env, tmp_path):
    folder = tmp_path / "run"
    killer = ("+callbacks.killer._target_=probe.KillWhileWriting", "+callbacks.killer.n=13")
    run(arguments(bare, folder, *killer), env, code=-signal.SIGKILL)
    (left,) = folder.glob(".last.ckpt.*")
    assert left.stat().st_size > 0
    assert content(folder)["global_step"] == 12
    run(arguments(bare, folder, f"ckpt={folder}/last.ckpt"), env)
    assert_same_run(folder, whole)
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_command_that_is_shown_goes_on(bare, whole, env, tmp_path, signum):
    folder = tmp_path / "lr=1, [a] b's"
    rare = ("callbacks.checkpoint.every_n_steps=1000", "callbacks.checkpoint.keep_every_n_steps=null")
    typed = arguments(bare, folder, *rare, "+callbacks.held._target_=probe.Held")
    process = waiting.start(typed, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    waiting.until((folder / "held").exists, process)
    process.send_signal(signum)
    stdout, stderr = waiting.finish(process)
    assert process.returncode == 128 + signum
    assert "Traceback" not in stderr
    (line,) = [line for line in stdout.splitlines() if "to resume: " in line]
    step = content(folder)["global_step"]
    assert step == 10
    said, command = line.split("; to resume: ")
    assert said == f"{signum.name}: saved after step {step}"
    assert " 'callbacks=[checkpoint]' " in command
    if signum == signal.SIGTERM:  # the same command after each signal
        run(["bash", "-c", command], env, cwd=tmp_path)
        assert_same_run(folder, whole)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(bare, whole, env, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    typed = [*arguments(bare, folder), f"trainer.max_steps={2 * STEPS}"]
    size = resource.RLIMIT_FSIZE
    before = (folder / "last.ckpt").read_bytes()

    def full():
        resource.setrlimit(size, (len(before) // 2, len(before) // 2))

    done = waiting.run([*typed, f"ckpt={folder}/last.ckpt"], env=env, preexec_fn=full)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "free some space, or choose another folder; files already written are kept" in line
    assert (folder / "last.ckpt").read_bytes() == before
    assert not list(folder.glob(".last.ckpt.*"))


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(bare, whole, env):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    done = waiting.run(arguments(bare, whole, "trainer.max_steps=3", "loss=vlb"), env=env)
    assert done.returncode == 1
    assert "of another run, which would be lost; resume it with ckpt=" in done.stderr
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_two_runs_at_once_do_not_share_a_folder(bare, env, tmp_path):
    folder = tmp_path / "run"
    slow = ("trainer.max_steps=100000", "+callbacks.slow._target_=probe.Slow")
    process = started(arguments(bare, folder, *slow), env, folder)
    resume = arguments(bare, folder, slow[0], f"ckpt={folder}/last.ckpt")
    done = waiting.run(resume, env=env)
    process.kill()
    process.communicate()
    assert done.returncode == 1
    assert f"error: another run is writing to {folder}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("quarter", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_quartile(train, tmp_path, monkeypatch, quarter):
    from ddpm.lit.module import DDPM

    losses = DDPM.losses

    def poisoned(self, diffusion, x_0, t, noise):
        found = losses(self, diffusion, x_0, t, noise)
        ill = (t - 1) * 4 // diffusion.T == quarter - 1
        return torch.where(ill & self.training & (self.global_step >= 6), torch.nan, found)

    monkeypatch.setattr(DDPM, "losses", poisoned)
    every = ("trainer.max_steps=20", "callbacks.checkpoint.every_n_steps=5", "trainer.log_every_n_steps=50")
    with pytest.raises(ValueError, match=rf"since step [78], first in quartile {quarter} of t") as caught:
        train(tmp_path, *every)
    assert f"the last good checkpoint is {os.path.relpath(tmp_path / 'last.ckpt')}" in str(caught.value)
    saved = content(tmp_path)
    assert saved["global_step"] == 5
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fails():
        with written(path, durable=True) as temporary:
            temporary.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"
    with path.open() as reader:
        with written(path, durable=True) as temporary:
            temporary.write_text("after")
            assert path.read_text() == "before"
        assert reader.read() == "before"  # another file took its place, in one step
    assert path.read_text() == "after"


def test_the_log_is_cut_to_the_rows_that_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("a,step\n1.0,5\n2.0,10\n3.0,11\n,1")
    trim(path, 2)
    assert list(csv.DictReader(path.open())) == [{"a": "1.0", "step": "5"}, {"a": "2.0", "step": "10"}]


# ---------------------------------------------------------------- long work inside training


class Work(Periodic):
    """Long work that is sent a signal, or the run killed, the first time that it acts after a step."""

    def __init__(self, every_n_steps, step, act):
        super().__init__(every_n_steps)
        self.step, self.act, self.steps = step, act, []

    def run(self, trainer, module):
        self.record(trainer, module, {"before": trainer.global_step})
        if trainer.global_step == self.step:
            self.step = None
            self.act()
        self.steps.append(trainer.global_step)
        self.record(trainer, module, {"after": trainer.global_step})


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    pytest.fail("the signal did not cut the work")


LOGGED = ("trainer.log_every_n_steps=1", "trainer.val_check_interval=2", "callbacks.checkpoint.every_n_steps=4")


@pytest.fixture(scope="module")
def working(compose, bare):
    """(folder, Work, *overrides) -> a run with that callback."""

    def trained(folder, work, *overrides):
        built = experiment(compose("train", *bare, *LOGGED, *overrides, f"output_dir='{folder}'"))
        built.trainer.callbacks.append(work)
        built.run()

    return trained


@pytest.fixture(scope="module")
def worked(working, tmp_path_factory):
    """The folder of an uninterrupted run, and a copy of it amid the work after step 3."""
    folder = tmp_path_factory.mktemp("worked")
    working(folder / "whole", Work(3, 3, lambda: shutil.copytree(folder / "whole", folder / "killed")))
    return folder / "whole", folder / "killed"


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])  # which is not due for a checkpoint; the last
def test_a_signal_amid_long_work_ends_the_run_and_the_work_is_done_again(working, worked, tmp_path, capsys, step):
    work = Work(3, step, interrupt)
    with pytest.raises(SystemExit) as stopped:
        working(tmp_path, work)
    assert stopped.value.code == 128 + signal.SIGTERM
    reached = min(step, 5)  # the last step is repeated
    assert f"SIGTERM: saved after step {reached}; to resume: " in capsys.readouterr().out
    assert content(tmp_path)["global_step"] == reached
    working(tmp_path, work, f"ckpt='{tmp_path}/last.ckpt'")
    assert work.steps == [3, 6]
    assert_same_run(tmp_path, worked[0])


@pytest.mark.slow
def test_a_kill_amid_long_work_loses_nothing(working, worked):
    whole, killed = worked
    assert content(killed)["global_step"] == 3
    work = Work(3, None, None)
    working(killed, work, f"ckpt='{killed}/last.ckpt'")
    assert work.steps == [3, 6]
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_a_signal_amid_validation_ends_the_run_and_validation_is_done_again(working, worked, tmp_path, monkeypatch):
    step = DDPM.validation_step

    def interrupted(self, batch, batch_idx):
        assert batch_idx == 0, "validation goes on"
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DDPM, "validation_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            working(tmp_path, Work(3, None, None))
    assert stopped.value.code == 128 + signal.SIGINT
    assert content(tmp_path)["global_step"] == 2
    work = Work(3, None, None)
    working(tmp_path, work, f"ckpt='{tmp_path}/last.ckpt'")
    assert work.steps == [3, 6]
    assert_same_run(tmp_path, worked[0])


def test_processes_that_follow_one_that_is_stopped_are_stopped_at_once(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(command, **options):
        started.append(popen(["sleep", "3600"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(rendezvous, "connect", lambda *given: None)
    with pytest.raises(SystemExit), followers._followers("train", 3):
        sys.exit(128 + signal.SIGTERM)
    assert [child.returncode for child in started] == [-signal.SIGKILL] * 2


def test_a_second_signal_loses_nothing(working, tmp_path, monkeypatch):
    def twice(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, *args)

    losses = DDPM.losses
    monkeypatch.setattr(DDPM, "losses", twice)
    with pytest.raises(SystemExit) as stopped:
        working(tmp_path, Work(6, None, None), "trainer.val_check_interval=6")
    assert stopped.value.code == 128 + signal.SIGINT
    assert content(tmp_path)["global_step"] == 1
