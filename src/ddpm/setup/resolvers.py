"""The functions that conf/*.yaml call, such as ${folder_name:...}, and their registration with the schemas."""

import hashlib
import re

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ddpm.setup.schema import EvaluateConfig, SampleConfig, TrainConfig

LONGEST = 200
"""Bytes of a folder's name, of the 255 that file systems allow."""


def folder_name(number: int, overrides: str) -> str:
    """The name of the folder of a sweep's job, which needs no quotes in ckpt=...

    Where it would be too long, each long override is cut and ends in a hash of it all, so that what differs shows.

    Args:
        number: of the job.
        overrides: each `key-value`, separated by commas.
    """
    items = [re.sub(r"[^\w.+-]+", "-", item) for item in overrides.split(",") if item]
    name = "_".join([str(number), *items])
    if len(name.encode()) > LONGEST:
        room = (LONGEST - len(str(number))) // len(items) - 1
        name = "_".join([str(number), *(_cut(item, room) for item in items)])
    return _cut(name, LONGEST)


def _cut(text: str, room: int) -> str:
    """`text` in so many bytes, with a hash of it all where it is longer."""
    if len(text.encode()) <= room:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: max(0, room - 9)].decode(errors="ignore") + "-" + digest


def output_dir() -> str:
    """The folder of the run, or what it would be, where Hydra shows the configuration alone."""
    hydra = HydraConfig.get()
    return str(hydra.run.dir if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir)


def default_experiment(data: str) -> str:
    """The experiment of whoever chooses none."""
    return "digits" if data == "digits" else "none"


def options() -> str:
    """The groups that the entry point takes with their options, one group a line, as --help shows them."""
    loader = GlobalHydra.instance().config_loader()
    groups = sorted(group for group in HydraConfig.get().runtime.choices if not group.startswith("hydra/"))
    return "\n".join(f"{group}: {', '.join(sorted(loader.get_group_options(group)))}" for group in groups)


def register() -> None:
    """Make known to Hydra the schemas, under the names that conf/*.yaml build on, and the resolvers used there."""
    for resolver in (folder_name, output_dir, default_experiment, options):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]  # Hydra copies it for each group of --help
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("sample_schema", SampleConfig)
