"""What is asked for of an option is done, or refused by name: nothing is ignored."""

import re
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from ddpm.commands import cli, errors
from ddpm.commands.subject import Subject
from ddpm.setup import build

CONF = Path(__file__).parents[2] / "conf"


def groups(entry):
    """The groups of an entry point."""
    defaults = OmegaConf.load(CONF / f"{entry}.yaml")["defaults"]
    names = [name.removeprefix("optional ") for each in defaults if not isinstance(each, str) for name in each]
    return [name for name in names if not name.startswith("override ")]


@pytest.mark.parametrize(
    ("entry", "group"), [(entry, group) for entry in ("train", "evaluate", "sample") for group in groups(entry)]
)
def test_a_misspelt_option_of_any_group_is_an_error_that_lists_the_options(compose, entry, group):
    with pytest.raises(MissingConfigException) as shown:
        compose(entry, f"{group}=dmp_solver")
    said = errors.explained(shown.value)
    assert f"{group}/dmp_solver" in said
    assert all(path.stem in said for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_a_misspelt_option_in_a_list_is_an_error(compose, group):
    with pytest.raises(MissingConfigException, match=f"{group}/csvv"):
        compose("train", f"{group}=[csvv]")


def test_advice_does_not_send_a_misspelt_key_astray(compose):
    with pytest.raises(ConfigCompositionException) as shown:
        compose("train", "batchsize=3")
    assert "If it is not misspelt, add it with +batchsize=3" in errors.explained(shown.value)


# ---------------------------------------------------------------- the sampler of a checkpoint


RUN = {"_target_": "ddpm.sampler.ddim.DDIM", "steps": 10, "clip": 0.9, "spacing": "uniform", "eta": 0.5}


@pytest.fixture
def asked(compose):
    """(entry point, *arguments as typed) -> name and fields of the sampler, for a checkpoint whose run had `RUN`."""

    def of(entry, *typed):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose(entry, ["ckpt=x", *typed], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            cli._leave_what_is_asked(cfg.sampler)
        finally:
            HydraConfig.instance().cfg = None
        node = Subject(cfg, {"sampler": RUN}, model=None, seed=0, step=0, share=None, sha256="").sampler_config
        assert build.instance("sampler", node).steps == node["steps"]
        fields = dict(node)
        return fields.pop("_target_").split(".")[-2], fields

    return of


OWN = {key: value for key, value in RUN.items() if key != "_target_"}


@pytest.mark.parametrize(
    ("entry", "typed", "expected"),
    [
        ("evaluate", [], OWN),
        ("evaluate", ["sampler.steps=5"], OWN | {"steps": 5}),
        ("sample", ["sampler.steps=5"], OWN | {"steps": 5}),
        ("evaluate", ["+sampler.steps=5"], OWN | {"steps": 5}),
        ("evaluate", ["sampler.eta=0", "sampler.spacing=karras"], OWN | {"eta": 0, "spacing": "karras"}),
        ("evaluate", ["sampler=ddim"], OWN),
        ("sample", ["sampler=ddim", "sampler.steps=null", "sampler.eta=0.0"], OWN | {"steps": None, "eta": 0.0}),
    ],
)
def test_fields_of_the_runs_own_sampler_are_kept_unless_given(asked, entry, typed, expected):
    assert asked(entry, *typed) == ("ddim", expected)


@pytest.mark.parametrize(
    ("typed", "name", "expected"),
    [
        (["sampler=ancestral"], "ancestral", {"steps": 10, "clip": 0.9, "spacing": "uniform"}),
        (["sampler=ancestral", "sampler.clip=true"], "ancestral", {"steps": 10, "clip": True, "spacing": "uniform"}),
        (["sampler=heun", "sampler.steps=7"], "heun", {"steps": 7, "clip": 0.9, "spacing": "karras"}),
        (
            ["sampler=dpm_solver", "sampler.steps=null"],
            "dpm_solver",
            {"steps": None, "clip": 0.9, "spacing": "log_snr", "order": 2, "stochastic": False},
        ),
    ],
)
def test_another_sampler_keeps_what_the_run_chose_unless_given(asked, typed, name, expected):
    assert asked("evaluate", *typed) == (name, expected)


def test_a_field_that_no_sampler_of_that_name_has_lists_those_it_has(asked):
    for typed in (["sampler.stpes=5"], ["sampler=ddim", "sampler.stpes=5"]):
        with pytest.raises(ValueError, match=re.escape("takes steps, clip, spacing, eta")):
            asked("evaluate", *typed)


@pytest.mark.parametrize("path", sorted((CONF / "sampler").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sampler_has_the_defaults_of_its_class(path):
    # By these, what a run chose is told from what it left alone.
    node = OmegaConf.load(path)
    assert {"_target_": node["_target_"]} | build.keywords(node) == node
