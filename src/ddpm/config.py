"""The schema of the configuration, and what a configuration from a checkpoint may name."""

import hashlib
import importlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import Tensor

from ddpm.data.names import printable
from ddpm.entries import brief, walk

BASES = {
    "schedule": "ddpm.schedule.base:Schedule",
    "parameterization": "ddpm.parameterization.base:Parameterization",
    "variance": "ddpm.variance.base:Variance",
    "network": "ddpm.network.base:Network",
    "conditioning": "ddpm.conditioning.base:Conditioning",
    "loss": "ddpm.loss.base:Loss",
    "time_sampler": "ddpm.time_sampler.base:TimeSampler",
    "sampler": "ddpm.sampler.base:Sampler",
    "data": "ddpm.data.source:Source",
}
"""The groups of which a checkpoint names an option, and what the options of each derive from."""
MODEL = ("schedule", "parameterization", "variance", "network", "conditioning")
"""The groups that define the model; a checkpoint can only be resumed with the same."""
STORED = {*MODEL, "loss", "time_sampler", "sampler", "data", "seed", "image", "evaluation", "total_batch"}
"""What a checkpoint holds of the configuration: what rebuilds, resumes and evaluates the model."""
LONGEST = 200
"""Bytes of a folder's name, of the 255 that file systems allow."""


def _unchosen() -> DictConfig:
    """A group of which no option is chosen; its fields can be given all the same."""
    return OmegaConf.create({}, flags={"struct": False})


@dataclass
class EMAConfig:
    """The average of the weights."""

    decay: float = 0.9999
    warm_up: bool = False


@dataclass
class TrainConfig:
    """What train.py is given; each Any is a config group."""

    schedule: Any = MISSING
    parameterization: Any = MISSING
    variance: Any = MISSING
    loss: Any = MISSING
    time_sampler: Any = MISSING
    network: Any = MISSING
    conditioning: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    strategy: Any = MISSING
    sampler: Any = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    ema: EMAConfig = field(default_factory=EMAConfig)
    batch_size: int = 128
    warmup_steps: int = 5000
    num_workers: int = 0
    seed: int = 0
    speed: str = "auto"
    compile: bool = False
    ckpt: str | None = None
    other_data: bool = False
    output_dir: str = MISSING


@dataclass
class NLLConfig:
    """How evaluate.py computes bits/dim."""

    estimator: str = "sampled"
    evaluations: int = 10
    n_images: int | None = None
    steps: int | None = None
    clip: Any = None


@dataclass
class RateDistortionConfig:
    """How evaluate.py computes rate and distortion."""

    n_images: int | None = 64


@dataclass
class ODEConfig:
    """How evaluate.py computes the likelihood of the probability-flow ODE."""

    n_images: int | None = 64
    divergence: str = "hutchinson"
    rtol: float = 1e-5
    atol: float = 1e-5


@dataclass
class EvaluateConfig:
    """What evaluate.py is given."""

    ckpt: str = MISSING
    metrics: list[str] = field(default_factory=lambda: ["fid", "is", "nll"])
    weights: str = "ema"
    n_samples: int | None = None
    split: str = "test"
    data_root: str | None = None
    batch_size: int = 256
    seed: int | None = None
    features: str | None = None
    features_dtype: str = "float32"
    inception_weights: str | None = None
    sampler: Any = field(default_factory=_unchosen)
    guidance: float = 0.0
    guidance_interval: list[float] | None = None
    guidance_scales: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 2.0, 3.0])
    speed: str = "reference"
    compile: bool = False
    nll: NLLConfig = field(default_factory=NLLConfig)
    rate_distortion: RateDistortionConfig = field(default_factory=RateDistortionConfig)
    ode: ODEConfig = field(default_factory=ODEConfig)
    save_samples: bool = False
    device: str = "auto"
    devices: Any = 1
    output_dir: str | None = None
    trusted: list[str] = field(default_factory=list)


@dataclass
class SampleConfig:
    """What sample.py is given."""

    ckpt: str = MISSING
    task: str = "grid"
    n: int = 64
    points: int = 11
    images: list[int] = field(default_factory=lambda: [0, 1])
    depth: int | None = None
    split: str = "test"
    data_root: str | None = None
    weights: str = "ema"
    batch_size: int = 256
    seed: int | None = None
    sampler: Any = field(default_factory=_unchosen)
    labels: list[Any] | None = None
    guidance: float = 0.0
    guidance_interval: list[float] | None = None
    speed: str = "reference"
    compile: bool = False
    format: str = "png"
    operator: Any = field(default_factory=_unchosen)
    solver: Any = field(default_factory=_unchosen)
    input: str | None = None
    noise: float = 0.0
    draws: int = 4
    lpips: bool = False
    device: str = "auto"
    devices: Any = 1
    output_dir: str | None = None
    trusted: list[str] = field(default_factory=list)


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
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("sample_schema", SampleConfig)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested dicts, lists and values, everything resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def check_targets(config: Any, trusted: Sequence[str] = ()) -> None:
    """Refuse a configuration that names what it may not, before anything but an option of ddpm is imported.

    Args:
        config: plain, from a checkpoint.
        trusted: packages of the user's, by their first name, that it may name too.
    Raises:
        ValueError: a target is neither an option of ddpm, of the group in whose place it stands, nor of a trusted
            package, or an entry would steer the instantiation, be computed, or is not plain.
    """
    for path, key, value in walk(config):
        if key == "_target_":
            group = path.removesuffix("._target_")
            package = str(value).split(".")[0]
            mine = is_option(value, [group] if group in BASES else list(BASES))
            if not mine and (package not in trusted or package == "ddpm"):
                trust = f"if you trust it, pass {shlex.quote(f'trusted=[{printable(package)}]')}"
                raise ValueError(
                    f"the checkpoint names {path} = {brief(value)}, which is not an option of ddpm; "
                    + (trust if package != "ddpm" else "it is refused")
                )
        elif str(key).startswith("_") or "${" in str(key) or (isinstance(value, str) and "${" in value):
            raise ValueError(f"the checkpoint's configuration holds {path}, which ddpm never writes; it is refused")
        elif isinstance(value, Tensor):
            raise ValueError(f"the checkpoint's configuration holds {path}, a tensor; it is refused")


def is_option(target: Any, groups: Sequence[str]) -> bool:
    """Whether `target` names a class of ddpm that derives from the base of one of these groups, where it is defined."""
    found = re.fullmatch(r"(ddpm\.([a-z_]+)\.[a-z0-9_]+)\.([A-Z]\w*)", target) if isinstance(target, str) else None
    if found is None or found[2] not in groups:
        return False
    try:
        kind = getattr(importlib.import_module(found[1]), found[3], None)
    except ModuleNotFoundError:
        return False
    return isinstance(kind, type) and issubclass(kind, resolve_name(BASES[found[2]])) and kind.__module__ == found[1]
