"""The schema of the configuration, and what a configuration from a checkpoint may name."""

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

# A leaf of the project: module and class, nothing behind them.
OWN = re.compile(
    r"ddpm\.(schedule|parameterization|variance|loss|time_sampler|network|conditioning|data|sampler)\.[a-z0-9_]+\.[A-Z]\w*"
)
MODEL = ("schedule", "parameterization", "variance", "network", "conditioning")
"""The groups that define the model; a checkpoint can only be resumed with the same."""
STORED = {*MODEL, "loss", "time_sampler", "sampler", "data", "seed", "image", "evaluation", "total_batch"}
"""What a checkpoint holds of the configuration: what rebuilds, resumes and evaluates the model."""
LONGEST = 200
"""Bytes of a folder's name, of the 255 that file systems allow."""


@dataclass
class EMAConfig:
    """The average of the weights."""

    decay: float = 0.9999
    warm_up: bool = True


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
    sampler: Any = None
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
    sampler: Any = None
    labels: list[Any] | None = None
    guidance: float = 0.0
    guidance_interval: list[float] | None = None
    speed: str = "reference"
    compile: bool = False
    format: str = "png"
    operator: Any = None
    solver: Any = None
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


def register() -> None:
    """Make the schemas known to Hydra, under the names that conf/*.yaml build on, and the resolver `folder_name`."""
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
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
    """Refuse a configuration that names what it may not, before anything is imported.

    Args:
        config: plain, from a checkpoint.
        trusted: packages of the user's, by their first name, that it may name too.
    Raises:
        ValueError: a target is neither a leaf of the project nor of a trusted package, or an entry would steer the
            instantiation or be computed.
    """
    for path, key, value in _entries(config):
        if key == "_target_":
            mine = isinstance(value, str) and OWN.fullmatch(value)
            package = str(value).split(".")[0]
            if not mine and (package not in trusted or package == "ddpm"):
                trust = f"if you trust it, pass {shlex.quote(f'trusted=[{package}]')}"
                raise ValueError(
                    f"the checkpoint names {path} = {value!r}, which is not an option of ddpm; "
                    + (trust if package != "ddpm" else "it is refused")
                )
        elif key.startswith("_") or "${" in key or (isinstance(value, str) and "${" in value):
            raise ValueError(f"the checkpoint's configuration holds {path}, which ddpm never writes; it is refused")


def _entries(config: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(config, dict):
        for key, value in config.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, str(key), value
            yield from _entries(value, here)
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            yield f"{path}.{i}", str(i), value
            yield from _entries(value, f"{path}.{i}")
