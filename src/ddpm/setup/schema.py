"""The schema of the configuration: keys and types. The defaults are in conf/{train,evaluate,sample}.yaml."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

CONF = next(each for up in (1, 3) if (each := Path(__file__).parents[up] / "conf").is_dir())
"""The project's own options: inside the package if it is installed, next to `src` in a checkout."""


def _unchosen() -> DictConfig:
    """A config group without a chosen option, whose fields can still be overridden."""
    return OmegaConf.create({}, flags={"struct": False})


@dataclass
class EMAConfig:
    """How weights are averaged."""

    decay: float = MISSING
    warm_up: bool = MISSING


@dataclass
class TrainConfig:
    """The options of train.py; each Any is a config group."""

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
    metrics: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    ema: EMAConfig = field(default_factory=EMAConfig)
    batch_size: int = MISSING
    warmup_steps: int = MISSING
    num_workers: int = MISSING
    seed: int = MISSING
    speed: str = MISSING
    compile: bool = MISSING
    ckpt: str | None = MISSING
    other_data: bool = MISSING
    objective: str | None = MISSING
    output_dir: str = MISSING


@dataclass
class NLLConfig:
    """How evaluate.py computes bits/dim."""

    estimator: str = MISSING
    evaluations: int = MISSING
    n_images: int | None = MISSING
    steps: int | None = MISSING
    clip: Any = MISSING


@dataclass
class RateDistortionConfig:
    """How evaluate.py computes rate and distortion."""

    n_images: int | None = MISSING


@dataclass
class ODEConfig:
    """How evaluate.py computes the likelihood of the probability-flow ODE."""

    n_images: int | None = MISSING
    divergence: str = MISSING
    rtol: float = MISSING
    atol: float = MISSING


@dataclass
class EvaluateConfig:
    """The options of evaluate.py."""

    ckpt: str = MISSING
    metrics: dict[str, Any] = field(default_factory=dict)
    weights: str = MISSING
    n_samples: int | None = MISSING
    split: str = MISSING
    reference: list[str] = MISSING
    data_root: str | None = MISSING
    batch_size: int = MISSING
    seed: int | None = MISSING
    features: str | None = MISSING
    features_dtype: str = MISSING
    inception_weights: str | None = MISSING
    sampler: Any = field(default_factory=_unchosen)
    guidance: float = MISSING
    guidance_interval: list[float] | None = MISSING
    guidance_scales: list[float] = MISSING
    speed: str = MISSING
    compile: bool = MISSING
    nll: NLLConfig = field(default_factory=NLLConfig)
    rate_distortion: RateDistortionConfig = field(default_factory=RateDistortionConfig)
    ode: ODEConfig = field(default_factory=ODEConfig)
    save_samples: bool = MISSING
    device: str = MISSING
    devices: Any = MISSING
    output_dir: str | None = MISSING
    trusted: list[str] = MISSING


@dataclass
class SampleConfig:
    """The options of sample.py."""

    ckpt: str = MISSING
    task: str = MISSING
    n: int = MISSING
    points: int = MISSING
    images: list[int] = MISSING
    depth: int | None = MISSING
    split: str = MISSING
    data_root: str | None = MISSING
    weights: str = MISSING
    batch_size: int = MISSING
    seed: int | None = MISSING
    sampler: Any = field(default_factory=_unchosen)
    labels: list[Any] | None = MISSING
    guidance: float = MISSING
    guidance_interval: list[float] | None = MISSING
    speed: str = MISSING
    compile: bool = MISSING
    format: str = MISSING
    operator: Any = field(default_factory=_unchosen)
    solver: Any = field(default_factory=_unchosen)
    input: str | None = MISSING
    noise: float = MISSING
    draws: int = MISSING
    lpips: bool = MISSING
    device: str = MISSING
    devices: Any = MISSING
    output_dir: str | None = MISSING
    trusted: list[str] = MISSING


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested dicts, lists and values, with all interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
