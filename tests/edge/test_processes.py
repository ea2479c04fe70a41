"""Several processes do what one does: the same numbers, one folder a job, nothing left behind."""

import csv
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typed
import waiting
from PIL import Image

from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.lit import devices
from ddpm.lit.experiment import experiment

ROOT = Path(__file__).parents[2]

PROBE = """
import lightning, os, signal, sys, time, torch

def listening():
    '''The addresses at which this process can be reached, in hexadecimal digits.'''
    own = {os.path.realpath(f"/proc/self/fd/{fd}").rpartition("/")[2] for fd in os.listdir("/proc/self/fd")}
    rows = [line.split() for kind in ("tcp", "tcp6") for line in open(f"/proc/net/{kind}")]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]

class Probe(lightning.Callback):
    '''Keeps what each process starts with and trains on.'''

    def on_train_start(self, trainer, module):
        self.weights = {name: value.clone() for name, value in module.diffusion.network.state_dict().items()}
        self.drawn, losses = [], module.losses
        self.listening, self.path = listening(), sys.path

        def observed(diffusion, x_0, t, noise):
            self.drawn.append((x_0.clone(), t.clone(), noise.clone()))
            return losses(diffusion, x_0, t, noise)

        module.losses = observed

    def on_validation_start(self, trainer, module):
        if not hasattr(self, "training"):
            self.training = list(self.drawn)

    def on_train_end(self, trainer, module):
        content = {"weights": self.weights, "drawn": self.training, "listening": self.listening, "path": self.path}
        torch.save(content, f"{trainer.default_root_dir}/probe_{trainer.global_rank}.pt")
"""


def metrics(folder):
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}


@pytest.fixture(scope="module")
def two(tiny, hostile, tmp_path_factory):
    """The folder of a run on two processes, started in a folder whose modules are not to be imported."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "probe.py").write_text(PROBE)
    options = ("trainer.devices=2", "trainer.limit_val_batches=1.0", "callbacks.quality.n_samples=101")
    probe = "+callbacks.probe._target_=probe.Probe"
    typed.run(
        typed.train(*tiny, *options, probe, f"hydra.run.dir={folder}/run"), env=typed.environment(folder), cwd=hostile
    )
    return folder / "run"


@pytest.mark.slow
def test_followers_find_modules_where_the_leader_does_and_none_in_the_current_folder(two, hostile):
    assert not list(hostile.glob("RAN*"))
    leader, follower = (torch.load(two / f"probe_{rank}.pt", weights_only=True)["path"] for rank in (0, 1))
    assert follower == leader
    assert leader[0] == str(ROOT)


@pytest.mark.slow
def test_processes_of_one_machine_listen_on_the_loopback_address_alone(two):
    for rank in (0, 1):
        assert torch.load(two / f"probe_{rank}.pt", weights_only=True)["listening"] == ["0100007F"]


@pytest.mark.slow
def test_processes_start_equal_and_train_on_other_images_times_and_noise(two):
    first, second = (torch.load(two / f"probe_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert len(first["drawn"]) == len(second["drawn"]) == 3
    for mine, others in zip(first["drawn"], second["drawn"], strict=True):
        assert all(not torch.equal(*pair) for pair in zip(mine, others, strict=True))


@pytest.mark.slow
def test_the_validation_loss_of_two_processes_is_that_of_one(two, compose, tiny, tmp_path):
    built = experiment(compose("train", *tiny, "trainer.limit_val_batches=1.0", f"output_dir='{tmp_path}'"))
    content = torch.load(two / "last.ckpt", weights_only=True)
    built.module.load_state_dict(content["state_dict"])
    (found,) = built.trainer.validate(built.module, built.data, verbose=False)
    assert metrics(two)["val/loss"][-1] == pytest.approx(found["val/loss"], rel=1e-5)


@pytest.fixture(scope="module")
def evaluated(compose):
    """(n, folder, entry point, *overrides): run it on n processes, one of which is this one."""

    def on(n, folder, entry, *overrides):
        if n == 1:
            {"evaluate": evaluate, "sample": sample}[entry](compose(entry, *overrides, f"output_dir='{folder}'"))
        else:
            words = [sys.executable, str(ROOT / f"{entry}.py"), *overrides, f"devices={n}", f"output_dir={folder}"]
            typed.run(words, env=typed.environment())

    return on


@pytest.fixture(scope="module")
def scores(two, evaluated, tmp_path_factory):
    """Number of processes -> the folder of their evaluation of the same checkpoint."""
    folders = {}
    for n in (1, 2):
        parent = tmp_path_factory.mktemp(f"by_{n}")
        evaluated(
            n,
            parent,
            "evaluate",
            *(f"ckpt={two}/last.ckpt", "metrics=[fid,is,kid,prc,nll,rate_distortion,ode]"),
            *("n_samples=101", "batch_size=8", "nll.n_images=13", "rate_distortion.n_images=3", "ode.n_images=3"),
            "save_samples=true",
        )
        (folders[n],) = parent.iterdir()
    return folders


@pytest.mark.slow
def test_two_processes_report_the_numbers_of_one(scores):
    def numbers(value, path=""):
        if isinstance(value, dict):
            return [pair for key, each in value.items() for pair in numbers(each, f"{path}.{key}")]
        if isinstance(value, list):
            return [pair for i, each in enumerate(value) for pair in numbers(each, f"{path}.{i}")]
        return [(path, value)]

    one, other = (numbers(json.loads((scores[n] / "metrics.json").read_text())) for n in (1, 2))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, a), (_, b) in zip(one, other, strict=True):
        rel = 1e-3 if path == ".ode.standard_error" else 1e-4  # the solver chooses its steps for a whole batch
        assert b == (pytest.approx(a, rel=rel, abs=1e-6) if isinstance(a, float) else a), path


@pytest.mark.slow
def test_samples_of_two_processes_are_those_of_one_without_duplicates(scores):
    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "samples").iterdir()}

    one, other = digests(scores[1]), digests(scores[2])
    assert one.keys() == other.keys()
    assert len(one) == len(set(one.values())) == 101
    assert sum(one[name] == other[name] for name in one) >= 99  # a rounding may carry a pixel to the next level


@pytest.mark.slow
def test_the_callbacks_of_two_processes_find_what_one_evaluates(two, scores):
    found = json.loads((scores[1] / "metrics.json").read_text())
    assert metrics(two)["fid"][-1] == pytest.approx(found["samples"]["fid"], rel=1e-4)


@pytest.mark.slow
def test_the_grid_of_a_run_on_two_processes_is_that_of_one(two, evaluated, tmp_path):
    evaluated(1, tmp_path, "sample", f"ckpt={two}/last.ckpt", "n=4")
    (folder,) = tmp_path.iterdir()
    trained, sampled = (Image.open(path) for path in (two / "samples" / "step_0000006.png", folder / "grid.png"))
    assert (trained.mode, trained.size, trained.tobytes()) == (sampled.mode, sampled.size, sampled.tobytes())


@pytest.mark.slow
def test_sampling_is_shared_and_the_grid_is_the_same(two, evaluated, tmp_path):
    for n in (1, 2):
        evaluated(n, tmp_path / str(n), "sample", f"ckpt={two}/last.ckpt", "n=7", "batch_size=3")
    one, other = (next((tmp_path / str(n)).iterdir()) for n in (1, 2))
    names = [path.name for path in sorted((one / "images").iterdir())]
    assert names == [path.name for path in sorted((other / "images").iterdir())] == [f"{i:06d}.png" for i in range(7)]
    assert (one / "grid.png").read_bytes() == (other / "grid.png").read_bytes()


@pytest.mark.slow
def test_reconstructions_of_two_processes_are_those_of_one(two, evaluated, tmp_path):
    options = (
        f"ckpt={two}/last.ckpt",
        "task=inverse",
        "operator=inpaint",
        "solver=dps",
        "n=5",
        "draws=2",
        "batch_size=3",
        "noise=0.1",
    )
    for n in (1, 2):
        evaluated(n, tmp_path / str(n), "sample", *options)
    one, other = (np.load(next((tmp_path / str(n)).iterdir()) / "inverse.npz") for n in (1, 2))
    for name in one.files:
        assert np.abs(one[name].astype(float) - other[name]).max() < 1e-4


@pytest.mark.slow
def test_a_signal_to_the_first_process_stops_all_at_one_step(bare, tmp_path):
    folder = tmp_path / "run"
    options = ("trainer.devices=2", "trainer.max_steps=100000", "callbacks.checkpoint.every_n_steps=1000000")
    words = typed.train(*bare, *options, f"hydra.run.dir={folder}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = waiting.start(words, env=typed.environment(), **pipes)
    waiting.until((folder / "metrics.csv").exists, process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = waiting.finish(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in stderr
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert f"SIGTERM: saved after step {step}; to resume: " in stdout
    waiting.gone(process)


@pytest.mark.slow
def test_a_failing_follower_ends_the_job_and_its_line_is_the_only_one(bare, tmp_path):
    (tmp_path / "failing.py").write_text(
        "import lightning\n"
        "class Failing(lightning.Callback):\n"
        "    def on_train_start(self, trainer, module):\n"
        "        if trainer.global_rank: raise OSError(28, 'No space left on device', '/scratch')\n"
    )
    failing = "+callbacks.failing._target_=failing.Failing"
    words = typed.train(*bare, "trainer.devices=2", failing, f"hydra.run.dir={tmp_path}/run")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = waiting.start(words, env=typed.environment(tmp_path) | {"TMPDIR": str(tmp_path)}, **pipes)
    _, stderr = waiting.finish(process)
    assert process.returncode == 1
    assert stderr.startswith("error: process 1: No space left on device: /scratch; ")
    assert len(stderr.splitlines()) == 1
    waiting.gone(process)
    assert not list(tmp_path.glob("ddpm_*"))


@pytest.mark.parametrize(("asked", "n"), [(1, 1), (3, 3), ("2", 2), ("auto", 1)])
def test_devices_are_counted_as_lightning_does(asked, n):
    assert devices.devices("cpu", asked) == n


@pytest.mark.parametrize("asked", [0, "many", -2])
def test_impossible_devices_are_refused(asked):
    with pytest.raises(ValueError, match="devices="):
        devices.devices("cpu", asked)


def test_several_nodes_ask_for_a_launcher(compose, bare, tmp_path):
    with pytest.raises(ValueError, match="start several nodes with torchrun or Slurm"):
        experiment(compose("train", *bare, "trainer.num_nodes=2", f"output_dir='{tmp_path}'"))
