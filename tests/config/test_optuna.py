"""Optuna suggests the options of each trial and learns its objective."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.ddpm_optuna import Optimise

TYPED = ["seed=1", "optimizer.lr=tag(log,interval(1e-5,1e-1))", "loss=simple,vlb", "batch_size=int(interval(16,64))"]


class Launcher:
    """Runs no training: the objective is least at lr = 1e-3 with loss=vlb."""

    def __init__(self, failing=()):
        self.jobs, self.failing = [], failing

    def launch(self, jobs, initial_job_idx):
        results = []
        for job in jobs:
            given = dict(each.split("=") for each in job)
            self.jobs.append(given)
            result = JobReturn(status=JobStatus.COMPLETED)
            result.return_value = (math.log10(float(given["optimizer.lr"])) + 3) ** 2 + (given["loss"] == "simple")
            if len(self.jobs) in self.failing:
                result.status, result.return_value = JobStatus.FAILED, ValueError("diverged")
            results.append(result)
        return results


def optimise(folder, launcher, n_trials, typed=TYPED, objective="bits_per_dim", n_jobs=2):
    sweeper = Optimise(n_trials, n_jobs, "minimize", 0)
    sweeper.config = OmegaConf.create({"objective": objective, "hydra": {"sweep": {"dir": str(folder)}}})
    sweeper.parser, sweeper.launcher = OverridesParser.create(), launcher
    sweeper.sweep(typed)
    return launcher


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_stay_in_their_ranges_and_approach_the_best(tmp_path, capsys):
    jobs = optimise(tmp_path, Launcher(), 40).jobs
    assert len(jobs) == 40
    assert {job["seed"] for job in jobs} == {"1"}
    assert all(1e-5 <= float(job["optimizer.lr"]) <= 1e-1 and 16 <= int(job["batch_size"]) <= 64 for job in jobs)
    late = jobs[20:]
    assert sum(job["loss"] == "vlb" for job in late) > 10
    said = capsys.readouterr().out
    assert "best of 40 trials: bits_per_dim" in said
    assert "  loss=vlb" in said


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_repeated_command_adds_the_trials_that_are_missing_and_failed_ones_do_not_end_it(tmp_path, capsys):
    first = optimise(tmp_path, Launcher(failing=(2,)), 3).jobs
    assert len(first) == 3
    assert "trial 1 failed: diverged" in capsys.readouterr().out
    second = optimise(tmp_path, Launcher(), 5).jobs
    assert len(second) == 2
    assert all(job not in first for job in second)
    assert len(optimise(tmp_path, Launcher(), 5).jobs) == 0
    with pytest.raises(ValueError, match="all 2 trials failed"):
        optimise(tmp_path / "failing", Launcher(failing=(1, 2)), 2)


def test_what_is_missing_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="needs what to optimise; give for instance objective=bits_per_dim"):
        optimise(tmp_path, Launcher(), 2, objective=None)
    with pytest.raises(ValueError, match="needs a range, such as"):
        optimise(tmp_path, Launcher(), 2, typed=["seed=1"])
    with pytest.raises(ValueError, match="direction must be minimize or maximize, got 'down'"):
        Optimise(2, 1, "down", 0)
