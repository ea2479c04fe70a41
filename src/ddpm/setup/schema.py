"""The schema of the configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

CONF = next(each for up in (1, 3) if (each := Path(__file__).parents[up] / "conf").is_dir())
"""The project's own options: within the package where it is installed, beside `src` in a checkout."""


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


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested dicts, lists and values, everything resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
