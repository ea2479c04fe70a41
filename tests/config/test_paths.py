"""Paths: `~` is the home wherever a path can be given, and a folder stands for its last checkpoint."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from ddpm.commands import cli
from ddpm.commands.sample import sample
from ddpm.setup import loading, run_folder
from ddpm.setup.schema import plain
from ddpm.support.files import expanded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory; another folder is the current one."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir())


def values(node):
    """Every plain value of a configuration."""
    if isinstance(node, dict):
        return [value for each in node.values() for value in values(each)]
    return [value for each in node for value in values(each)] if isinstance(node, list) else [node]


@pytest.mark.parametrize(
    ("entry", "keys"),
    [
        ("train", ["ckpt", "output_dir", "data.root", "callbacks.quality.inception_weights"]),
        ("evaluate", ["ckpt", "output_dir", "data_root", "inception_weights"]),
        ("sample", ["ckpt", "output_dir", "data_root", "input", "operator.mask"]),
    ],
)
def test_every_path_begins_at_home_if_it_begins_with_a_tilde(compose, home, entry, keys):
    groups = ["data=mnist"] if entry == "train" else ["operator=inpaint"] if entry == "sample" else []
    cfg = compose(entry, *groups, *(f"{key}='~/here'" for key in keys))
    cli.check(cfg)
    found = values(plain(cfg))
    assert found.count(str(home / "here")) >= len(keys)
    assert not [value for value in found if str(value).startswith("~")]


def test_a_checkpoint_a_mask_and_an_output_folder_at_home_are_found(compose, home, trained):
    (home / "run").mkdir()
    (home / "run" / "last.ckpt").write_bytes(trained.read_bytes())
    Image.new("L", (8, 8), 255).save(home / "mask.png")
    cfg = compose(
        "sample",
        *("ckpt='~/run'", "output_dir='~/out'", "task=inverse", "operator=inpaint", "operator.mask='~/mask.png'"),
        *("solver=dps", "n=1", "draws=1", "sampler.steps=1", "device=cpu"),
    )
    cli.check(cfg)
    sample(cfg)
    assert list((home / "out").glob("samples_*/inverse.json"))


def test_a_folder_stands_for_the_last_checkpoint_in_it(compose, trained, tmp_path):
    for entry in ("train", "evaluate", "sample"):
        cfg = compose(entry, f"ckpt={json.dumps(str(trained.parent))}", "output_dir=x")
        cli.check(cfg)
        assert cfg.ckpt == str(trained)
    assert run_folder.goes_on(str(trained.parent), trained.parent)
    assert loading.load(trained.parent).T == loading.load(trained).T
    with pytest.raises(ValueError, match=r"there is no checkpoint .*last\.ckpt"):
        loading.read(tmp_path)


def test_paths_from_home_may_be_typed_without_quotes_that_of_hydra_too(home, bare, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *bare, "hydra.run.dir=~/run", "ckpt=~/nowhere.ckpt"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit, match=f"there is no checkpoint {home}/nowhere.ckpt"):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert (home / "run").is_dir()


def test_a_home_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="there is no home directory for ~nobody-of-that-name/x; give the full path"):
        expanded("~nobody-of-that-name/x")
