"""What a run leaves in loggers, on the terminal and in its log."""

import io
import os
import socket
import termios
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from torch.optim.optimizer import register_optimizer_step_post_hook

from ddpm.commands import plots
from ddpm.lit import loggers
from ddpm.lit.callbacks.progress import Progress
from ddpm.support import bars, printed

# ---------------------------------------------------------------- W&B and TensorBoard


class Config(dict):
    """Stands for the configuration of a run of W&B."""

    def update(self, values, allow_val_change):
        super().update(values)


class Run:
    """Stands for a run of W&B."""

    def __init__(self, **options):
        self.id = options["id"] or "first1"
        self.options = options
        self.config = Config()
        self.logged = []

    def log(self, metrics):
        self.logged.append(metrics)

    def finish(self):
        pass


@pytest.fixture
def runs(monkeypatch):
    """The runs of W&B that are started."""
    started = []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(Run(**options)) or started[-1])
    monkeypatch.setenv("WANDB_MODE", "offline")
    return started


def test_wandb_is_given_the_configuration_and_a_resume_continues_its_run(train, tmp_path, runs):
    train(tmp_path / "a", "logger=wandb", "trainer.max_steps=3")
    train(tmp_path / "b", "logger=wandb", f"ckpt={tmp_path}/a/last.ckpt")
    first, second = runs
    assert first.config["optimizer"]["lr"] == 1e-3
    assert first.config["network"]["width"] == 8
    assert first.options["job_type"] == "train"
    assert first.options["id"] is None
    assert second.options["id"] == first.id
    assert any("train/loss" in metrics for metrics in first.logged)


def test_another_wandb_run_can_be_asked_for_at_a_resume(runs):
    (logger,) = chosen = [loggers.wandb_logger("here", id="mine")]
    loggers.go_on(chosen, "first1")
    assert logger.version == "mine"


@pytest.mark.parametrize(
    ("mode", "typed", "name", "group"),
    [
        (RunMode.RUN, [], "digits", None),
        (RunMode.RUN, ["loss=vlb", "ckpt=a/last.ckpt", "logger=wandb"], "loss=vlb", None),
        (RunMode.MULTIRUN, ["loss=vlb", "seed=3"], "loss=vlb seed=3", "2026-01-01_10-00-00"),
        (RunMode.RUN, [f"network.groups={'1' * 200}"], f"network.groups={'1' * 113}", None),
    ],
)
def test_a_wandb_run_is_named_after_what_was_overridden_and_grouped_by_its_sweep(
    monkeypatch, mode, typed, name, group, runs
):
    hydra = {
        "mode": mode,
        "overrides": {"task": typed},
        "sweep": {"dir": "runs/multirun/2026-01-01_10-00-00"},
        "runtime": {"choices": {"data": "digits"}},
    }
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    options = loggers.wandb_logger("here").experiment.options
    assert (options["name"], options["group"]) == (name, group)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_environment_decides_whether_wandb_is_on(monkeypatch, environment, mode):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert loggers.wandb_logger("here")._wandb_init["mode"] == mode


def test_a_key_without_a_network_does_not_hold_a_run_up(monkeypatch, capsys):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    def mode(port):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        return loggers.wandb_logger("here")._wandb_init["mode"]

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert mode(server.server_port) == "online"
    server.shutdown()
    server.server_close()
    assert mode(server.server_port) == "offline"
    assert "does not answer" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        assert not loggers._answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)


def test_tensorboard_is_given_the_configuration(train, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(TensorBoardLogger, "log_hyperparams", lambda self, params, **_: given.append(params))
    train(tmp_path, "logger=tensorboard", "trainer.max_steps=1")
    (params,) = given[:1]
    assert params["schedule"]["T"] == 20


def test_the_learning_rate_and_the_norm_before_clipping_are_logged(train, tmp_path):
    def logged(name, *overrides):
        train(tmp_path / name, "trainer.max_steps=2", "trainer.log_every_n_steps=1", "optimizer.lr=0.01", *overrides)
        head, *rows = (line.split(",") for line in (tmp_path / name / "metrics.csv").read_text().splitlines())
        columns = [dict(zip(head, row, strict=True)) for row in rows]
        return [[float(row[f"train/{key}"]) for row in columns] for key in ("learning_rate", "gradient_norm")]

    rate, clipped = logged("a", "trainer.gradient_clip_val=1e-4")
    assert rate == pytest.approx([0.01 / 3, 0.02 / 3])
    assert clipped[0] == logged("b", "trainer.gradient_clip_val=null")[1][0] > 1e-2
    by_value = ("trainer.gradient_clip_val=1e-4", "+trainer.gradient_clip_algorithm=value")
    assert clipped[0] == logged("c", *by_value)[1][0]


def test_gradients_are_clipped_as_by_torch(train, tmp_path, monkeypatch):
    seen = []

    def step(optimizer, *args):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_post_hook(step)
    try:
        train(tmp_path, "trainer.max_steps=1", "trainer.gradient_clip_val=1e-3")
    finally:
        hook.remove()
    assert seen[-1] == pytest.approx(1e-3, rel=1e-2)


# ---------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _available(reader):
    try:
        return os.read(reader, 10_000)
    except BlockingIOError:
        return b""


def test_the_bar_shows_the_loss_at_80_columns(monkeypatch):
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    with open(writer, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        callback = Progress()
        bar = callback.init_train_tqdm()
        bar.reset(800_000)
        bar.n = 123_456
        bar.start_t -= 36_000
        monkeypatch.setattr(
            "lightning.pytorch.callbacks.TQDMProgressBar.get_metrics",
            lambda self: {"v_num": 0, "images_per_second": 123.4, "val/loss": 0.0456, "train/loss": 0.0345},
        )
        bar.set_postfix(callback.get_metrics())
        os.set_blocking(reader, False)
        shown = b"".join(iter(lambda: _available(reader), b""))
    last = shown.decode().split("\r")[-1]
    os.close(reader)
    assert "loss=0.0345" in last
    assert len(last) <= 80
    assert "images/s" not in last  # there is no room: the loss comes first


def test_without_a_terminal_progress_is_a_line_every_few_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with bars.Steps("FID", 100) as steps:
        for _ in range(100):
            clock[0] += bars.SECONDS / 20
            steps.bar.last_print_t -= 1.0
            steps()
    text = bars.sys.stderr.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert 4 <= len(lines) <= 5
    assert all(line.startswith("FID: ") for line in lines)
    assert "20/100" in lines[0]


def test_short_work_says_nothing_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with bars.Steps("FID", 3) as steps:
        for _ in range(3):
            steps()
    assert not bars.sys.stderr.getvalue()


# ---------------------------------------------------------------- the log


def test_a_log_keeps_what_is_printed_and_the_error_without_bars_and_colours(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    log = tmp_path / "run" / "train.log"
    with printed.kept(log), bars.Steps("FID", 10) as steps:
        print("\x1b[1mbold\x1b[0m ±")
        steps()
        steps.bar.refresh()
    with pytest.raises(ValueError, match="diverged"), printed.kept(log):
        raise ValueError("it diverged")
    text = log.read_text(encoding="utf-8")
    assert text.startswith("bold ±\n")
    assert "FID" not in text
    assert text.endswith("ValueError: it diverged\n")
    assert "FID" in bars.terminal().getvalue()


def test_no_title_is_cut_off():
    images = torch.zeros(3, 1, 1, 28, 28, dtype=torch.uint8)
    title = "encoded and decoded by the ODE, RMSE 12.34 of 255"
    figure = plots.tiles(images, ["0"], ["$x_0$", "$x_T$", "decoded"], title)
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
