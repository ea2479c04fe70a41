"""Options that live outside of the project: files of the user's, and nothing edited."""

import json
import sys
from pathlib import Path

import pytest
import torch
import waiting

from ddpm import load
from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

CODE = '''
from dataclasses import dataclass

import torch

from ddpm.schedule.base import Schedule


@dataclass(frozen=True)
class Geometric(Schedule):
    """beta_t = first * factor^t."""

    first: float = 0.01
    factor: float = 1.1

    def beta(self):
        return self.first * self.factor ** torch.arange(self.T, dtype=torch.float64)
'''
YAML = "_target_: my_schedules.Geometric\nT: 1000\nfirst: 0.02\nfactor: 1.2\n"
BETA = 0.02 * 1.2 ** torch.arange(20, dtype=torch.float64)


def typed(folder, entry, *arguments):
    """Exit code, output and errors of a command of the user's, with the user's modules on the path."""
    done = waiting.run(
        [sys.executable, str(ROOT / entry), *arguments],
        cwd=folder,
        env=waiting.with_modules(folder / "code") | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def mine(tmp_path_factory, bare):
    """A folder with the user's two files and a run trained with them."""
    folder = tmp_path_factory.mktemp("mine")
    for path, content in (("code/my_schedules.py", CODE), ("options/schedule/geometric.yaml", YAML)):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(content)
    code, stdout, stderr = typed(
        folder, "train.py", "--config-dir", "options", "schedule=geometric", *bare, "hydra.run.dir=run"
    )
    assert code == 0, stderr
    assert "geometric" in stdout.lower() or "my_schedules" in stdout
    return folder


def test_a_schedule_outside_of_the_project_trains_and_is_stored(mine):
    config = torch.load(mine / "run" / "last.ckpt", weights_only=True)["ddpm_config"]
    assert config["schedule"] == {"_target_": "my_schedules.Geometric", "T": 20, "first": 0.02, "factor": 1.2}


def test_its_checkpoint_is_evaluated_with_trust(mine):
    options = ("ckpt=run/last.ckpt", "metrics=[nll]", "nll.n_images=4", "trusted=[my_schedules]")
    code, stdout, stderr = typed(mine, "evaluate.py", *options)
    assert code == 0, stderr
    assert "bits/dim" in stdout


def test_it_loads_in_python_with_trust_and_is_the_users_schedule(mine, monkeypatch):
    refused = r"names schedule._target_ = 'my_schedules.Geometric'.*pass 'trusted=\[my_schedules\]'"
    with pytest.raises(ValueError, match=refused):
        load(mine / "run" / "last.ckpt")
    monkeypatch.syspath_prepend(mine / "code")
    diffusion = load(mine / "run" / "last.ckpt", trusted=["my_schedules"])
    assert torch.allclose(diffusion.process.beta[1:], BETA, rtol=1e-12)
    sys.modules.pop("my_schedules")


def test_a_resumed_run_needs_no_word_of_trust_as_its_options_name_the_module(mine, bare):
    code, _, stderr = typed(
        mine, "train.py", "--config-dir", "options", "schedule=geometric", *bare, "trainer.max_steps=8",
        "ckpt=run/last.ckpt", "hydra.run.dir=resumed",
    )  # fmt: skip
    assert code == 0, stderr
    assert torch.load(mine / "resumed" / "last.ckpt", weights_only=True)["global_step"] == 8


PRECONDITIONED = '''
"""The preconditioning of Karras et al. 2022, Table 1, for x_t = sqrt(alpha_bar) (x_0 + sigma noise)."""

from ddpm.parameterization.base import Parameterization


class EDM(Parameterization):
    """D(x) = c_skip x + c_out F(c_in x, c_noise); the network predicts F."""

    def __init__(self, sigma_data=0.5):
        self.sigma_data = sigma_data

    def coefficients(self, at):
        sigma = at.sigma / at.sqrt_alpha_bar
        total = (sigma**2 + self.sigma_data**2).sqrt()
        c_skip, c_out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        return 1 / c_out, -c_skip / (at.sqrt_alpha_bar * c_out)

    def c_in(self, t, process):
        at = process.coefficients(t)
        return 1 / (at.sigma**2 + (self.sigma_data * at.sqrt_alpha_bar) ** 2).sqrt()

    def c_noise(self, t, process):
        at = process.coefficients(t)
        return (at.sigma / at.sqrt_alpha_bar).log() / 4
'''
WEIGHTED = '''
"""Times weighted as in Karras et al. 2022, Table 1: log sigma ~ N(mean, std^2)."""

from ddpm.loss.base import WeightedError


class LogNormal(WeightedError):
    """p(log sigma_t) on the error of the network's own output, whose weight lambda c_out^2 is 1."""

    def __init__(self, mean=-1.2, std=1.2):
        self.mean, self.std = mean, std

    def weight(self, diffusion, t):
        log_sigma = -diffusion.process.lambda_t[t] / 2
        return (-(((log_sigma - self.mean) / self.std) ** 2) / 2).exp()
'''
NETWORK = '''
import torch
from torch import nn

from ddpm.network.base import Network


class Plain(Network):
    """Two convolutions; the time is one more channel."""

    def __init__(self, image_size, in_channels, out_channels, width=8, classes=0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels + 1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)
        )

    def forward(self, x_t, t, label=None):
        time = t.to(x_t.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x_t.shape[2:])
        return self.layers(torch.cat([x_t, time], 1))
'''
METRIC = '''
from ddpm.metrics.base import Metric, Row


class Brightness(Metric):
    """Mean grey level of the samples minus that of the real images, in -255..255."""

    needs = frozenset({"pixels"})
    rows = (Row("brightness", "mean grey level"),)

    def __call__(self, samples, real):
        return {"brightness": float(samples["pixels"].double().mean() - real["pixels"].double().mean())}
'''
FILES = {
    "code/my_edm.py": PRECONDITIONED,
    "code/my_loss.py": WEIGHTED,
    "code/my_network.py": NETWORK,
    "code/my_metric.py": METRIC,
    "options/parameterization/edm.yaml": "_target_: my_edm.EDM\nsigma_data: 0.5\n",
    "options/loss/log_normal.yaml": "_target_: my_loss.LogNormal\nmean: -1.2\nstd: 1.2\n",
    "options/network/plain.yaml": "_target_: my_network.Plain\nwidth: 8\n",
    "options/metrics/brightness.yaml": "brightness:\n  _target_: my_metric.Brightness\n",
}


@pytest.fixture(scope="module")
def trial(tmp_path_factory, bare):
    """A run on two processes of a preconditioned model, its loss, a network and a metric, all from outside."""
    folder = tmp_path_factory.mktemp("trial")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    options = [option for option in bare if not option.startswith(("network.", "callbacks="))]
    code, stdout, stderr = typed(
        folder, "train.py", "--config-dir", "options", "parameterization=edm", "loss=log_normal", "network=plain",
        "metrics=[brightness]", *options, "callbacks=[quality,checkpoint]", "callbacks.quality.n_samples=40",
        "trainer.devices=2", "hydra.run.dir=run",
    )  # fmt: skip
    assert code == 0, stderr
    assert "mean grey level" in stdout
    return folder


def test_a_preconditioned_model_and_a_network_from_outside_train(trial):
    config = torch.load(trial / "run" / "last.ckpt", weights_only=True)["ddpm_config"]
    targets = [config[group]["_target_"] for group in ("parameterization", "loss", "network")]
    assert targets == ["my_edm.EDM", "my_loss.LogNormal", "my_network.Plain"]


def test_they_are_evaluated_and_a_metric_from_outside_is_the_same_as_in_training_on_two_processes(trial):
    trained = json.loads((trial / "run" / "results.json").read_text())["metrics"]["brightness"]
    assert trained != 0
    code, stdout, stderr = typed(
        trial, "evaluate.py", "--config-dir", "options", "metrics=[brightness,nll]", "nll.n_images=4", "ckpt=run",
        "n_samples=40", "output_dir=evaluated", "trusted=[my_edm,my_loss,my_network]",
    )  # fmt: skip
    assert code == 0, stderr
    assert "mean grey level" in stdout
    assert "bits/dim" in stdout
    (file,) = (trial / "evaluated").rglob("metrics.json")
    found = json.loads(file.read_text())["samples"]
    assert found["brightness"] == pytest.approx(trained, abs=1e-6)
    assert found["features"] is None  # a feature network is not needed


def test_an_edm_network_of_zeros_is_the_optimal_denoiser_of_gaussian_data():
    namespace = {}
    exec(PRECONDITIONED, namespace)
    process, seen = Process(Linear().beta()), []

    class Zeros(torch.nn.Module):
        def forward(self, x, t):
            seen.append((x, t))
            return torch.zeros_like(x)

    model = Diffusion(Zeros(), process, namespace["EDM"](sigma_data=0.3), FixedSmall())
    t = torch.tensor([1, 200, 600, 1000])
    x_0, noise = torch.randn(2, 4, 1, 100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = process.diffuse(0.3 * x_0, t, noise)
    alpha_bar = process.alpha_bar[t].view(-1, 1, 1, 1)
    exact = alpha_bar.sqrt() * 0.09 / (alpha_bar * 0.09 + 1 - alpha_bar) * x_t
    assert torch.allclose(model.predict(x_t, t).x_0, exact, rtol=1e-9)
    ((x, c_noise),) = seen
    assert torch.allclose(x.var((1, 2, 3)), torch.ones(4, dtype=torch.float64), rtol=0.05)
    assert torch.allclose(c_noise, -process.lambda_t[t] / 8, rtol=1e-9)
