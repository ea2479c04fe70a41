"""A study is a sweep over cells and seeds."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ddpm.commands import cli
from ddpm.setup import run_folder
from hydra_plugins.ddpm_study import Study

CONF = Path(__file__).parents[2] / "conf"
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml"))
EVALUATED = {"samplers", "guidance"}
"""Studies of a checkpoint; the others train."""


def jobs(name, *typed, max_batch_size=None):
    """The overrides of each job, in batches."""
    given = OmegaConf.merge(
        OmegaConf.load(CONF / "hydra" / "sweeper" / "study.yaml"),
        OmegaConf.load(CONF / "study" / f"{name}.yaml").hydra.sweeper,
    )
    params = [f"study={name}", *(f"{key}={value}" for key, value in given.params.items())]
    sweeper = Study(max_batch_size, OmegaConf.to_container(given.params), OmegaConf.to_container(given.cells))
    return sweeper.split_arguments(OverridesParser.create().parse_overrides([*params, *typed]), max_batch_size)


@pytest.mark.parametrize("name", STUDIES)
def test_every_job_of_every_study_composes_and_no_two_are_the_same(compose, name):
    (batch,) = jobs(name)
    entry = ("evaluate", "ckpt=x") if name in EVALUATED else ("train", "output_dir=x")
    configured = [compose(*entry, *overrides) for overrides in batch]
    assert len({OmegaConf.to_yaml(cfg) for cfg in configured}) == len(batch) >= 3
    assert {cfg.seed for cfg in configured} == {0, 1, 2}


def test_table2_has_the_rows_and_columns_of_the_paper(compose):
    (batch,) = jobs("table2", "seed=7")
    names = [
        tuple(cfg[group]["_target_"].split(".")[2] for group in ("parameterization", "loss", "variance"))
        for cfg in (compose("train", *overrides, "output_dir=x") for overrides in batch)
    ]
    losses = [("vlb", "learned"), ("vlb", "fixed_large"), ("simple", "fixed_large")]
    assert names == [(prediction, *loss) for prediction in ("mu", "eps") for loss in losses]


def test_what_is_typed_is_swept_too_and_every_cell_gets_its_first_seed_first():
    batches = jobs("table2", "seed=4,5", "trainer.max_steps=9", max_batch_size=6)
    assert [len(batch) for batch in batches] == [6, 6]
    for batch, seed in zip(batches, (4, 5), strict=True):
        assert all({f"seed={seed}", "trainer.max_steps=9"} <= {*overrides} for overrides in batch)


@pytest.mark.parametrize("name", STUDIES)
def test_a_job_is_an_ordinary_run_that_its_command_repeats(name):
    (batch,) = jobs(name)
    assert not any(each.startswith("study=") for overrides in batch for each in overrides)
    assert {*OmegaConf.load(CONF / "study" / f"{name}.yaml")} == {"hydra"}


def test_a_sweeper_is_told_the_objective_of_a_finished_run_and_nothing_without_one(compose, monkeypatch, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"fid": 2.5}}))
    monkeypatch.setattr(cli, "lead", lambda *job: None)
    monkeypatch.setattr(run_folder, "_job", lambda cfg, folder: None)
    folder = f"output_dir={json.dumps(str(tmp_path))}"
    assert cli.train(compose("train", folder, "objective=fid")) == 2.5
    assert cli.train(compose("train", folder)) is None
    with pytest.raises(ValueError, match="objective=bits_per_dim was not measured by"):
        run_folder.result(tmp_path, "bits_per_dim")


def test_an_objective_that_no_callback_measures_is_one_line_before_training(message):
    line = message("train", "objective=accuracy")
    assert "objective must be one of train/loss, val/loss, " in line
    assert line.endswith("got accuracy")
