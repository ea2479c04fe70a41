"""conf/<group>/<name>.yaml <-> src/ddpm/<group>/<name>.py <-> its one class, keyword for keyword.

The options are found, not listed: a new one is tested without editing this file.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

import lightning
import pytest
import torch
from omegaconf import OmegaConf

from ddpm.commands.evaluation.base import Evaluation
from ddpm.conditioning.base import Conditioning
from ddpm.data.source import Source
from ddpm.loss.base import Loss
from ddpm.metrics.base import Metric
from ddpm.network.base import Network
from ddpm.operator.base import Operator
from ddpm.parameterization.base import Parameterization
from ddpm.sampler.base import Sampler
from ddpm.schedule.base import Schedule
from ddpm.setup.schema import EvaluateConfig, SampleConfig, TrainConfig
from ddpm.solver.base import Solver
from ddpm.time_sampler.base import TimeSampler
from ddpm.variance.base import Variance

CONF = Path(__file__).parents[2] / "conf"
PACKAGES = {
    "schedule": ("ddpm.schedule", Schedule),
    "parameterization": ("ddpm.parameterization", Parameterization),
    "variance": ("ddpm.variance", Variance),
    "loss": ("ddpm.loss", Loss),
    "time_sampler": ("ddpm.time_sampler", TimeSampler),
    "sampler": ("ddpm.sampler", Sampler),
    "data": ("ddpm.data", Source),
    "conditioning": ("ddpm.conditioning", Conditioning),
    "operator": ("ddpm.operator", Operator),
    "solver": ("ddpm.solver", Solver),
    "callbacks": ("ddpm.lit.callbacks", lightning.Callback),
}
SEVERAL = {"metrics": (("ddpm.metrics", Metric), ("ddpm.commands.evaluation", Evaluation))}
"""Groups whose options are of several kinds, each in a folder of its own."""
# Keywords that another group determines.
GIVEN = {"time_sampler": {"T"}, "network": {"image_size", "in_channels", "out_channels", "classes"}}


LIGHTNING = {"best", "early_stopping"}
"""Callbacks of Lightning's, which are chosen beside the default ones."""


def options(group):
    """Name -> content of the group's files, the list of callbacks and those of Lightning left out."""
    files = {path.stem: OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml"))}
    return {name: content for name, content in files.items() if "defaults" not in content and name not in LIGHTNING}


def subclasses(base):
    """The project's classes that derive from `base`, through classes of other packages too."""
    direct = set(base.__subclasses__())
    return {kind for kind in direct if kind.__module__.startswith("ddpm.")}.union(*map(subclasses, direct))


def leaves(group):
    """Module name -> its public classes of the group's kind that can be built and that no other derives from."""
    kinds = SEVERAL.get(group) or (PACKAGES[group],)
    return {name: found for package, base in kinds for name, found in leaves_of(package, base).items()}


def leaves_of(package, base):
    modules = [found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    for module in modules:
        importlib.import_module(f"{package}.{module}")
    found = {}
    for kind in sorted(subclasses(base), key=lambda kind: kind.__name__):
        parent, _, module = kind.__module__.rpartition(".")
        public = not kind.__name__.startswith("_")
        if parent == package and public and not inspect.isabstract(kind) and not subclasses(kind):
            found.setdefault(module.rstrip("_"), []).append(kind)  # `class` is a word of Python
    return found


def keywords(kind):
    return set(inspect.signature(kind).parameters)


@pytest.mark.parametrize("group", [*PACKAGES, *SEVERAL])
def test_every_option_is_one_file_of_code_and_one_of_configuration(group):
    assert set(options(group)) == set(leaves(group))


@pytest.mark.parametrize("group", [*PACKAGES, *SEVERAL])
def test_every_module_holds_one_option_and_its_file_names_it_and_its_keywords(group):
    for name, kinds in leaves(group).items():
        assert len(kinds) == 1, f"{name}: {kinds}"
        node = options(group)[name]
        if group in ("callbacks", "metrics"):
            assert list(node) == [name]
            node = node[name]
        kind = kinds[0]
        assert node["_target_"] == f"{kind.__module__}.{kind.__name__}"
        assert set(node) - {"_target_"} == keywords(kind) - GIVEN.get(group, set()), name


def test_the_default_callbacks_are_all_of_them():
    listed = OmegaConf.load(CONF / "callbacks" / "default.yaml")["defaults"]
    assert sorted(listed) == sorted(options("callbacks"))
    assert listed[0] == "throughput"


@pytest.mark.parametrize("name", options("network"))
def test_every_network_file_names_a_network_and_gives_its_keywords(name):
    node = options("network")[name]
    kind = pkgutil.resolve_name(node["_target_"])
    assert issubclass(kind, Network)
    assert kind.__module__.startswith("ddpm.network.")
    assert GIVEN["network"] <= keywords(kind)
    assert set(node) - {"_target_"} == keywords(kind) - GIVEN["network"]


@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_file_waits_for_the_parameters_and_names_known_keywords(name):
    node = options("optimizer")[name]
    kind = getattr(torch.optim, node["_target_"].removeprefix("torch.optim."))
    assert node["_partial_"] is True
    assert set(node) - {"_target_", "_partial_"} <= keywords(kind) - {"params"}


@pytest.mark.parametrize("name", ["train", "evaluate", "sample"])
def test_a_default_stands_in_the_yaml_alone_which_has_one_for_every_key(name, compose):
    schema = {"train": TrainConfig, "evaluate": EvaluateConfig, "sample": SampleConfig}[name]
    alone = OmegaConf.structured(schema)
    known = {key for key in alone if not OmegaConf.is_missing(alone, key)}
    assert {key for key in known if not OmegaConf.is_dict(alone[key])} == set()
    cfg = compose(name, *(["output_dir=x"] if name == "train" else ["ckpt=x"]))
    assert OmegaConf.missing_keys(cfg) == set()


def test_every_group_of_the_entry_points_is_a_folder_and_every_folder_a_group():
    groups = set()
    for entry in ("train", "evaluate", "sample"):
        defaults = OmegaConf.load(CONF / f"{entry}.yaml")["defaults"]
        groups |= {next(iter(each)).removeprefix("optional ") for each in defaults if not isinstance(each, str)}
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert {group for group in groups if not group.startswith("override")} == folders
