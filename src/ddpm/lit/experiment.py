"""A training run, built and checked as a whole before it starts."""

import logging
import pkgutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from omegaconf import DictConfig

import ddpm.lit.callbacks
from ddpm import build, checkpoint
from ddpm.config import MODEL, plain
from ddpm.data.batches import TrainBatches
from ddpm.data.datamodule import DataModule
from ddpm.ema import EMA
from ddpm.lit import report
from ddpm.lit.module import DDPM

EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the averaged network stays in evaluation mode
    r"Experiment logs directory",  # the run's folder already holds its configuration
    r".*does not have many workers",  # data in memory needs none
    r".*treespec, LeafSpec",  # of Lightning's own code
)


class Experiment(NamedTuple):
    """What a run consists of."""

    trainer: lightning.Trainer
    module: DDPM
    data: DataModule
    config: dict[str, Any]

    def run(self) -> None:
        """Train, from the checkpoint if there is one."""
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        if self.trainer.is_global_zero:
            report.summary(self.trainer, self.module, self.data, self.config)
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self.config["ckpt"], weights_only=True)
        if self.trainer.is_global_zero:
            report.results(self.trainer, self.module)


def experiment(cfg: DictConfig) -> Experiment:
    """Build every part of a run, and check that they fit together.

    Raises:
        ValueError: naming what does not fit, and what to do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips
    config = plain(cfg)
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2^32, got {config['seed']}")
    lightning.seed_everything(config["seed"], verbose=False)  # the same initial weights on every process
    source = build.source(config)
    module = _module(config, source.shape, source.levels)
    trainer = _trainer(cfg, config, module.diffusion.T)
    if config["ckpt"] is not None:
        _check_resume(config)
    data = DataModule(source, config["batch_size"], config["seed"], config["num_workers"])
    data.setup()
    TrainBatches(len(data.train), config["batch_size"], config["seed"], world=trainer.world_size)  # that one fits
    return Experiment(trainer, module, data, config)


def _module(config: dict[str, Any], shape: tuple[int, int, int], levels: int) -> DDPM:
    loss = build.instance("loss", config["loss"])
    build.check_variance(loss, build.instance("variance", config["variance"]))
    diffusion = build.diffusion(config, shape, levels)
    stored = {key: config[key] for key in (*MODEL, "loss", "time_sampler", "sampler", "data", "seed")}
    fid, bits = (config["callbacks"].get(name, {}) for name in ("fid", "bits_per_dim"))
    stored["evaluation"] = {
        "features": fid.get("features", "inception"),
        "n_samples": fid.get("n_samples"),
        "n_images": bits.get("n_images"),
    }
    return DDPM(
        diffusion,
        loss,
        build.instance("time_sampler", config["time_sampler"], T=diffusion.T),
        build.optimizer(config["optimizer"]),
        EMA(diffusion.network, config["ema"]["decay"], config["ema"]["warm_up"]),
        config["warmup_steps"],
        config["seed"],
        stored | {"image": {"shape": list(shape), "levels": levels}},
    )


def _trainer(cfg: DictConfig, config: dict[str, Any], T: int) -> lightning.Trainer:
    max_steps = config["trainer"].get("max_steps", -1)
    if max_steps < 1:
        raise ValueError(f"training is counted in steps: trainer.max_steps must be at least 1, got {max_steps}")
    build.sampler(config["sampler"], T)
    callbacks = _callbacks(config, T)
    loggers = [build.instance(f"logger.{name}", node) for name, node in config["logger"].items()]
    fixed = {
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": "progress" in config["callbacks"],
        "enable_checkpointing": "checkpoint" in config["callbacks"],
        "default_root_dir": config["output_dir"],
    }
    for name in {"callbacks", "logger", *fixed} & set(config["trainer"]):
        raise ValueError(
            f"trainer.{name} is set by ddpm itself; trainer.max_steps is the length of a run, the groups callbacks "
            f"and logger say what is shown and kept"
        )
    return build.instance("trainer", config["trainer"], callbacks=callbacks, logger=loggers, **fixed)


def _callbacks(config: dict[str, Any], T: int) -> list[lightning.Callback]:
    """The callbacks that are chosen; an experiment may hold settings of others, which have no target then."""
    known = sorted(module.name for module in pkgutil.iter_modules(ddpm.lit.callbacks.__path__))
    built = []
    for name, node in config["callbacks"].items():
        if "_target_" not in node and name not in known:
            raise ValueError(f"callbacks.{name} has no _target_; the callbacks are {', '.join(known)}")
        if "sampler" in node:
            build.sampler(node["sampler"], T)
        if "_target_" in node:
            built.append(build.instance(f"callbacks.{name}", node))
    return built


def _check_resume(config: dict[str, Any]) -> None:
    """The model of the checkpoint must be the one that is configured."""
    trained = checkpoint.read(Path(config["ckpt"]), trusted=_packages(config))["ddpm_config"]
    differing = [group for group in (*MODEL, "loss", "time_sampler", "data") if trained[group] != config[group]]
    if differing:
        first = differing[0]
        raise ValueError(
            f"ckpt={config['ckpt']} was trained with other settings of {', '.join(differing)} "
            f"({first}: {trained[first]}, here {config[first]}); repeat the options of that run"
        )


def _packages(config: Any) -> list[str]:
    """The packages that the user's own configuration names: the checkpoint may name them too."""
    if isinstance(config, dict):
        here = [str(value).split(".")[0] for key, value in config.items() if key == "_target_"]
        return here + [package for value in config.values() for package in _packages(value)]
    return []
