"""An option that lives outside of the project: two files of the user's, and nothing edited."""

import sys
from pathlib import Path

import pytest
import torch
import waiting

from ddpm import load

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


def test_its_checkpoint_is_refused_without_trust_and_evaluated_with_it(mine):
    options = ("ckpt=run/last.ckpt", "metrics=[nll]", "nll.n_images=4")
    code, _, stderr = typed(mine, "evaluate.py", *options)
    assert code != 0
    assert "Traceback" not in stderr
    assert "error: the checkpoint names schedule._target_ = 'my_schedules.Geometric'" in stderr
    assert "pass 'trusted=[my_schedules]'" in stderr
    code, stdout, stderr = typed(mine, "evaluate.py", *options, "trusted=[my_schedules]")
    assert code == 0, stderr
    assert "bits/dim" in stdout


def test_it_loads_in_python_with_trust_and_is_the_users_schedule(mine, monkeypatch):
    with pytest.raises(ValueError, match="my_schedules"):
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
