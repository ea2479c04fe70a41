"""Resolvers for conf/*.yaml, such as ${folder_name:...}, and the registration of resolvers and schemas."""

import hashlib
import re

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ddpm.setup.schema import EvaluateConfig, SampleConfig, TrainConfig

LONGEST = 200
"""The maximum number of bytes in a folder's name; file systems allow 255."""


def folder_name(number: int, overrides: str) -> str:
    """The folder name of a sweep's job, which needs no quotes in ckpt=...

    If it would be too long, each long override is cut and ends in a hash of the whole override, to stay distinct.

    Args:
        number: number of the job.
        overrides: each `key-value`, separated by commas.
    """
    items = [re.sub(r"[^\w.+-]+", "-", item) for item in overrides.split(",") if item]
    name = "_".join([str(number), *items])
    if len(name.encode()) > LONGEST:
        room = (LONGEST - len(str(number))) // len(items) - 1
        name = "_".join([str(number), *(_cut(item, room) for item in items)])
    return _cut(name, LONGEST)


def _cut(text: str, room: int) -> str:
    """`text` in at most `room` bytes, cut and ending in a hash of the whole if it is longer."""
    if len(text.encode()) <= room:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: max(0, room - 9)].decode(errors="ignore") + "-" + digest


def output_dir() -> str:
    """The run's folder; if Hydra only shows the configuration, the folder it would be."""
    hydra = HydraConfig.get()
    return str(hydra.run.dir if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir)


def default_experiment(data: str) -> str:
    """The experiment if none is chosen."""
    return "digits" if data == "digits" else "none"


def options(_root_: DictConfig) -> str:
    """The entry point's config groups with their options, one group per line, for --help."""
    loader = GlobalHydra.instance().config_loader()
    chosen = {*HydraConfig.get().runtime.choices}
    # Hydra's choices leave out groups of which several options are chosen
    groups = sorted(
        group for group in loader.list_groups("") if group in chosen or (group in _root_ and group != "hydra")
    )
    return "\n".join(f"{group}: {', '.join(sorted(loader.get_group_options(group)))}" for group in groups)


def register() -> None:
    """Register the resolvers, and the schemas under the names that conf/*.yaml refer to."""
    for resolver in (folder_name, output_dir, default_experiment, options):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]  # Hydra copies it for each group of --help
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("sample_schema", SampleConfig)
