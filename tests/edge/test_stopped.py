"""A full disk leaves whole files or none, and Ctrl-C one line: in evaluate.py, sample.py and the cache."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import waiting
from matplotlib.figure import Figure

from ddpm.commands import cli, plots
from ddpm.commands.evaluate import evaluate
from ddpm.commands.evaluation.ode import ODE
from ddpm.commands.sample import sample
from ddpm.data.images import InMemory
from ddpm.metrics import classifier
from ddpm.support import files
from ddpm.support.pictures import save_gif, save_png, saving

ROOT = Path(__file__).parents[2]


@contextmanager
def full_disk(size):
    """No file grows beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


NOISE = torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
WRITERS = {
    "npz": lambda path: files.write_npz(path, {"noise": NOISE}),
    "csv": lambda path: files.write_csv(path, [{"noise": value} for value in NOISE.flatten().tolist()]),
    "json": lambda path: files.write_json(path, NOISE.tolist()),
    "text": lambda path: files.write_text(path, "noise" * 1000),
    "tensors": lambda path: files.write_tensors(path, {"noise": NOISE}),
    "png": lambda path: save_png(NOISE, path),
    "gif": lambda path: save_gif([NOISE, 255 - NOISE], path),
    "plot": lambda path: plots.save(Figure(), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_file_before_and_no_part_of_another(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text("before")
    with full_disk(500), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        WRITERS[kind](path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"
    WRITERS[kind](path)
    assert path.stat().st_size > 500


def labelled(n):
    return InMemory(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(classifier.RECIPE, "examples", 1)
    return tmp_path / "cache"


def test_a_full_cache_of_classifiers_is_one_line_that_names_another(cache):
    with (
        full_disk(500),
        pytest.raises(ValueError, match=r"cannot be saved in .*cache: .*; free some space there, or set DDPM_"),
    ):
        classifier.train_classifier(labelled(64), labelled(16), 2, 256)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made_is_said_and_does_without(cache):
    cache.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="set DDPM_CACHE to a folder that you own"):
        path = classifier.train_classifier(labelled(64), labelled(16), 2, 256)
    assert path.is_file()
    assert cache.read_text() == "a file, not a folder"


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, 2), (OSError, 2), (ValueError, 0)])
def test_images_that_are_written_survive_an_interrupt_and_a_full_disk(tmp_path, error, kept):
    def stopped():
        with saving(tmp_path / "images") as save:
            save(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
            raise error

    with pytest.raises(error):
        stopped()
    assert len(list(tmp_path.rglob("*.png"))) == kept


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, "seed=2")
    return folder / "last.ckpt"


@pytest.mark.slow
def test_commands_leave_no_cut_arrays_on_a_full_disk(compose, checkpoint, tmp_path):
    for name, command, *options in (
        ("evaluate", evaluate, "metrics=[nll]", "nll.n_images=50"),
        ("sample", sample, "n=64", "format=npz", "sampler=ddim", "sampler.steps=2"),
        ("sample", sample, "task=encode"),
        (
            "sample",
            sample,
            "task=inverse",
            "operator=inpaint",
            "solver=dps",
            "n=8",
            "draws=2",
            "sampler=ddim",
            "sampler.steps=2",
        ),
    ):
        cfg = compose(name, f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", *options)
        with full_disk(500), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            command(cfg)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"encode.json", "inverse.json"}


@pytest.mark.slow
def test_an_interrupt_says_what_is_kept_and_how_to_go_on(compose, checkpoint, tmp_path, monkeypatch):
    def interrupted(self, subject):
        def run(folder):
            raise KeyboardInterrupt

        return run

    monkeypatch.setattr(ODE, "prepare", interrupted)
    options = (f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}/out'", "nll.n_images=4")
    with pytest.raises(KeyboardInterrupt, match=r"^nothing was written; to continue: repeat the command$"):
        evaluate(compose("evaluate", *options, "metrics=[ode]"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(compose("evaluate", *options, "metrics=[nll,ode]"))
    (folder,) = (tmp_path / "out").iterdir()
    kept = f"kept: metrics.json, terms.npz, terms.png in {os.path.relpath(folder)}"
    assert str(caught.value) == f"{kept}; to continue: repeat the command with the metrics that are left"


@pytest.mark.slow
def test_ctrl_c_while_sampling_is_one_line_and_status_130(checkpoint, tmp_path):
    command = [sys.executable, "sample.py", f"ckpt={checkpoint}", "n=100000", "batch_size=2", f"output_dir={tmp_path}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    pipe = subprocess.PIPE
    process = waiting.start(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
    waiting.until(lambda: bool(list(tmp_path.rglob("000003.png"))), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = waiting.finish(process)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert re.fullmatch(r"SIGINT: stopped; kept: images in \S+; to continue: repeat the command\n", stdout)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_ctrl_c_anywhere_is_one_line_and_status_130(monkeypatch, capsys):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.allocator, "keep_memory", lambda: None)
    for name in ("HYDRA_FULL_ERROR", cli.FULL):
        monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit) as caught:
        cli.start("evaluate", main)
    assert caught.value.code == 130
    assert capsys.readouterr().out == "SIGINT: stopped; files already written are kept\n"
