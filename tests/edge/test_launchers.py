"""Runs and sweeps on several processes, whoever starts them: ddpm, torchrun, Slurm, or Hydra's launchers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typed
import waiting

from ddpm.lit.experiment import experiment

ROOT = Path(__file__).parents[2]

PROBE = """
import lightning, os, signal, time

class Held(lightning.Callback):
    '''Lets the second job of a sweep not go beyond its tenth step, until there is a signal or a file "go".'''

    def on_train_batch_end(self, trainer, *args):
        folder = trainer.default_root_dir
        if trainer.global_step == 10 and trainer.is_global_zero and folder.endswith("/1"):
            seen = []
            before = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *given: (seen.append(given), before(*given)))
            open(f"{folder}/held", "w").close()
            while not seen and not os.path.exists(f"{folder}/go"):
                time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ("hydra.launcher.n_jobs=2",)),
        ("submitit_local", ("hydra.launcher.timeout_min=100000", "trainer.devices=2")),
    ],
)
def test_a_sweep_on_a_launcher_trains_every_job_and_imports_nothing_from_the_current_folder(
    bare, tmp_path, hostile, launcher, options
):
    words = typed.train("-m", *bare, "loss=simple,vlb", f"hydra/launcher={launcher}", *options)
    folders = (f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}")
    typed.run([*words, *folders], env=typed.environment(), cwd=hostile)
    assert not list(hostile.glob("RAN*"))
    losses = [json.loads((tmp_path / job / "results.json").read_text())["config"]["loss"] for job in ("0", "1")]
    assert [loss["_target_"] for loss in losses] == ["ddpm.loss.simple.Simple", "ddpm.loss.vlb.VLB"]
    assert all((tmp_path / job / "last.ckpt").exists() for job in ("0", "1"))


LONG = ("trainer.devices=2", "trainer.max_steps=14", "callbacks.checkpoint.every_n_steps=1")


def assert_same_weights(folder, other):
    one, two = (torch.load(each / "last.ckpt", weights_only=True)["state_dict"] for each in (folder, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def alone(bare, tmp_path_factory):
    """The folder of a run on two processes, started by ddpm."""
    folder = tmp_path_factory.mktemp("alone")
    typed.run(typed.train(*bare, *LONG, "loss=vlb", f"hydra.run.dir={folder}"), env=typed.environment())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_a_sweep_on_two_processes_is_one_sweep_and_goes_on_where_it_was_killed(launcher, bare, alone, tmp_path):
    start = (sys.executable,)
    if launcher == "torchrun":
        start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    (tmp_path / "probe.py").write_text(PROBE)
    env = typed.environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    held = "+callbacks.held._target_=probe.Held"
    subdirs = "hydra.sweep.subdir=${hydra:job.num}"
    words = typed.train(
        "-m", *bare, *LONG, "loss=simple,vlb", held, f"hydra.sweep.dir={tmp_path}/cut", subdirs, launcher=start
    )
    first, second = tmp_path / "cut" / "0", tmp_path / "cut" / "1"

    process = waiting.start(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waiting.until((second / "held").exists, process)
    process.send_signal(signal.SIGTERM if launcher == "torchrun" else signal.SIGKILL)
    waiting.finish(process)
    waiting.gone(process)
    assert not list(tmp_path.glob("ddpm_*"))
    assert (first / "results.json").exists()
    assert not (second / "results.json").exists()
    done = (first / "last.ckpt").stat().st_mtime_ns

    (second / "go").touch()
    said = typed.run(words, env=env)
    assert f"already finished: {os.path.relpath(first)}" in said
    assert f"resuming: {os.path.relpath(second)}" in said
    assert (first / "last.ckpt").stat().st_mtime_ns == done
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["0", "1", "multirun.yaml"]
    for folder in (first, second):
        assert json.loads((folder / "results.json").read_text())["steps"] == 14
    assert_same_weights(second, alone)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "sweep whose launcher starts every task"])
def test_the_tasks_of_slurm_train_together(bare, alone, tmp_path, way):
    words = typed.train(*bare, *LONG, "loss=vlb", f"hydra.run.dir={tmp_path}/run")
    if way != "run":  # as the launcher does: each task calls the job's function itself
        code = (
            "import runpy, sys; from ddpm.commands import followers; followers.start = lambda entry, main: main(); "
            f"sys.argv[0] = {str(ROOT / 'train.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        words = [sys.executable, "-c", code, *words[2:]]
    tasks = []
    for rank in ("0", "1"):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
        slurm |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}
        slurm |= {"SLURM_NTASKS_PER_NODE": "2"}
        env = typed.environment() | slurm | {waiting.MARK: str(tmp_path)}
        tasks.append(waiting.start(words, env=env, stderr=subprocess.PIPE, text=True))
    for task in tasks:
        _, stderr = waiting.finish(task)
        assert task.returncode == 0, stderr[-3000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 14
    assert_same_weights(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_static_graph_trains_the_same_and_refuses_accumulation(bare, alone, compose, tmp_path):
    options = (*LONG, "loss=vlb", "strategy.static_graph=true", f"hydra.run.dir={tmp_path}/static")
    typed.run(typed.train(*bare, *options), env=typed.environment(tmp_path))
    assert_same_weights(tmp_path / "static", alone)
    accumulate = ("strategy.static_graph=true", "trainer.accumulate_grad_batches=2")
    refused = compose("train", *bare, *accumulate, f"output_dir='{tmp_path}/refused'")
    with pytest.raises(ValueError, match=r"does not work with trainer\.accumulate_grad_batches=2"):
        experiment(refused)
