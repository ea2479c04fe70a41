"""Settings and surroundings that cannot be: one line that says what to do, or they work."""

import inspect
import io
import logging
import os
import re
import runpy
import sys
from pathlib import Path

import lightning
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

import ddpm
from ddpm.chain.process import Process
from ddpm.commands import cli, errors
from ddpm.commands import evaluate as evaluation
from ddpm.commands.evaluation.nll import NLL
from ddpm.lit import devices
from ddpm.lit.between_steps import BetweenSteps
from ddpm.lit.interrupt import Signals
from ddpm.lit.plan import planned
from ddpm.lit.trainer import build_trainer
from ddpm.metrics import classifier, inception
from ddpm.schedule.linear import Linear
from ddpm.setup import build
from ddpm.setup.schema import plain

ROOT = Path(__file__).parents[2]
WRONG = ("abc", -1, 0, 1.5, float("nan"), [], ["a"], {"a": 1}, True, None)


@pytest.fixture(scope="module")
def one_line(compose, bare):
    """(setting of the trainer, value) -> the line that refuses it; None where it is taken."""
    config = plain(compose("train", *bare, "callbacks=[]", "logger=[]", "output_dir=x"))
    process = Process(Linear(T=20).beta())

    def of(name, value):
        given = config | {"trainer": config["trainer"] | {name: value}}
        try:
            build_trainer(planned(given), process, BetweenSteps(Signals(), lambda rows: None))
        except ValueError as error:
            return errors.explained(error)
        return None

    return of


@pytest.mark.parametrize("name", list(inspect.signature(lightning.Trainer).parameters))
def test_no_setting_of_the_trainer_gives_a_stack_trace(one_line, name):
    for value in WRONG:
        line = one_line(name, value)
        assert line is None or "trainer" in line or "devices" in line


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("log_every_n_steps", 0, "trainer.log_every_n_steps must be at least 1, got 0"),
        ("val_check_interval", 0, "trainer.val_check_interval must be at least 1, got 0"),
        ("accumulate_grad_batches", 0, "trainer.accumulate_grad_batches must be at least 1, got 0"),
        ("overfit_batches", 1, "trainer.overfit_batches is set by ddpm itself"),
        ("limit_train_batches", 0, "trainer.limit_train_batches is set by ddpm itself"),
        ("max_steps", "abc", "trainer.max_steps must be int, got 'abc'"),
        ("num_nodes", {"a": 1}, "trainer.num_nodes must be int, got {'a': 1}"),
        ("precision", "abc", "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, got abc"),
        ("deterministic", "warm", "trainer.deterministic must be bool or null or warn, got 'warm'"),
    ],
)
def test_a_setting_of_the_trainer_that_cannot_be_says_what_can(one_line, name, value, expected):
    assert expected in one_line(name, value)


@pytest.mark.parametrize(
    ("group", "override", "expected"),
    [
        ("optimizer", "optimizer.lr=abc", "optimizer.lr must be float, got 'abc'"),
        ("optimizer", "optimizer.betas=3", "optimizer.betas must be list of float, got 3"),
        ("optimizer", "optimizer.betas=[a,b]", "optimizer.betas must be list of float, got ['a', 'b']"),
        ("network", "network.multipliers=2", "network.multipliers must be list of int, got 2"),
        ("network", "network.attention=[4.5]", "network.attention must be list of int, got [4.5]"),
        ("schedule", "schedule.T={a:1}", "schedule.T must be int, got {'a': 1}"),
        ("sampler", "sampler.steps=2.5", "sampler.steps must be int or null, got 2.5"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_by_name(compose, group, override, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        build.instance(group, compose("train", override)[group])


@pytest.mark.parametrize("kind", ["cuda", "gpu"])
@pytest.mark.parametrize("asked", ["auto", 1, -1, [0]])
def test_a_gpu_where_there_is_none_is_one_line(monkeypatch, kind, asked):
    def refuse(asked):
        raise MisconfigurationException("there is\nnone")

    monkeypatch.setattr(devices.CUDAAccelerator, "auto_device_count", lambda: 0)
    monkeypatch.setattr(devices.CUDAAccelerator, "parse_devices", refuse)
    with pytest.raises(ValueError, match=f"is not available on {kind}: this machine has 0 GPUs; .*cpu instead"):
        devices.devices(kind, asked)


@pytest.mark.slow
def test_metrics_can_be_monitored_and_the_profiler_reports(train, tmp_path):
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("lightning.pytorch.profilers")
    logger.addHandler(handler)
    try:
        built = train(
            tmp_path,
            *("callbacks=[bits_per_dim,checkpoint,best]", "callbacks.bits_per_dim.n_images=4", "trainer.max_steps=3"),
            *("callbacks.bits_per_dim.every_n_steps=3", "+trainer.profiler=simple"),
        )
    finally:
        logger.removeHandler(handler)
    assert "run_training_epoch" in heard[-1]
    found = built.trainer.callback_metrics["bits_per_dim"].item()
    assert found == pytest.approx(built.module.results["bits_per_dim"])
    (best,) = (callback for callback in built.trainer.callbacks if isinstance(callback, ModelCheckpoint))
    assert best.best_model_score.item() == pytest.approx(found)
    assert Path(best.best_model_path) == tmp_path / "best.ckpt"
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_what_monitors_a_metric_looks_once_at_each_value(train, tmp_path):
    built = train(
        tmp_path,
        *(
            "callbacks=[bits_per_dim,early_stopping]",
            "callbacks.bits_per_dim.n_images=4",
            "callbacks.bits_per_dim.every_n_steps=2",
        ),
        *(
            "trainer.max_steps=20",
            "trainer.val_check_interval=1",
            "trainer.limit_val_batches=1",
            "optimizer.lr=0.0",
            "callbacks.early_stopping.patience=2",
        ),
    )
    assert built.trainer.global_step == 7  # the same value after steps 2, 4 and 6; validation came after every step


def test_a_metric_that_nothing_computes_is_one_line(train, tmp_path):
    with pytest.raises(ValueError, match="could not find the monitored key") as shown:
        train(tmp_path, "callbacks=[checkpoint,best]", "trainer.max_steps=3")
    assert len(errors.explained(shown.value).splitlines()) == 1


def test_advice_names_a_way_out_of_missing_features(tmp_path):
    with pytest.raises(ValueError, match=r"needs labelled data .*=inception.*~callbacks\.quality.*metrics=\[nll\]"):
        classifier.train_classifier(None, None, 0, 256)
    with pytest.raises(ValueError, match=r"features=classifier for .*~callbacks\.quality.*metrics=\[nll\]"):
        inception.inception(tmp_path / "missing")


# ---------------------------------------------------------------- surroundings


def test_without_a_home_the_line_says_to_set_one(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit, match=r"error: there is no home directory.*; set HOME to a folder"):
        cli.start("evaluate", lambda: pytest.fail("it went on"))


def test_what_is_not_ascii_is_printed_where_only_that_is_known(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    row = {"bits_per_dim": 3.25, "standard_error": 0.5, "split": "test", "n": 8, "division": "of \N{DEGREE SIGN}"}
    result = {"checkpoint": "x", "step": 1, "weights": "ema", "nll": row}
    cli.start("evaluate", lambda: evaluation._show(result, {"nll": NLL()}))
    stream.flush()
    shown = stream.buffer.getvalue().decode("ascii")
    assert "3.25 +- 0.5" in shown
    assert "of ?" in shown


# ---------------------------------------------------------------- as typed


@pytest.fixture
def ran(monkeypatch, capsys):
    """(run, *arguments) -> what is printed by an entry point, and the line with which it ends."""

    def of(run, *arguments):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["entry.py", *arguments])
        GlobalHydra.instance().clear()
        end = None
        try:
            run()
        except SystemExit as stop:
            end = stop.code
        return capsys.readouterr().out, end

    return of


def script(name):
    return lambda: runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


TAKEN = {"evaluate": {"metrics", "sampler", "study"}, "sample": {"sampler", "operator", "solver"}}


@pytest.mark.parametrize("entry", TAKEN)
def test_help_lists_the_groups_that_the_entry_point_takes(ran, entry):
    shown, end = ran(script(entry), "--help")
    assert end in (None, 0)
    listed = {line.split(":")[0].strip() for line in shown.split("==")[2].splitlines() if ": " in line}
    assert listed == TAKEN[entry]
    assert "ddim" in shown


def test_the_configuration_can_be_shown_with_everything_resolved(ran):
    shown, end = ran(script("train"), "--cfg", "job", "--resolve", "data=mnist")
    assert end in (None, 0)
    assert "output_dir: runs/mnist/" in shown


@pytest.mark.parametrize("entry", ["evaluate", "sample"])
def test_the_package_can_be_run_as_a_module(ran, entry):
    assert ran(lambda: runpy.run_module("ddpm", run_name="__main__"), entry)[1] == "error: missing: ckpt; give ckpt=..."


def test_the_console_command_lists_its_commands_and_refuses_others(ran):
    shown, end = ran(cli.main)
    assert end is None
    assert all(f"ddpm {name} " in shown for name in ("train", "evaluate", "sample", "report"))
    assert ran(cli.main, "--version") == (f"{ddpm.__version__}\n", None)
    assert (
        ran(cli.main, "trian")[1]
        == "error: there is no command 'trian'; the commands are train, evaluate, sample, report"
    )
