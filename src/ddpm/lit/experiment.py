"""A training run, checked and built completely before it starts."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from ddpm.data.batches import TrainBatches
from ddpm.data.source import Source
from ddpm.lit import loggers, report
from ddpm.lit.between_steps import BetweenSteps
from ddpm.lit.datamodule import DataModule
from ddpm.lit.how_to_resume import how_to_resume
from ddpm.lit.interrupt import Interrupted, Signals
from ddpm.lit.module import DDPM
from ddpm.lit.plan import Plan, planned
from ddpm.lit.resume import check_data, resume
from ddpm.lit.trainer import build_trainer
from ddpm.model.ema import EMA
from ddpm.parallel import processes
from ddpm.setup import build, run_folder, speed
from ddpm.setup.schema import plain
from ddpm.setup.targets import STORED
from ddpm.support import printed

EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the averaged network stays in evaluation mode
    r".*does not have many workers",  # data in memory needs none
    r".*treespec, LeafSpec",  # from Lightning's own code
    r"Grad strides do not match bucket view",  # from 1x1 convolutions, whose strides have no effect
    r"It is recommended to use `self.log\('step'",  # the same on every process
)
LOG = "train.log"


class Experiment(NamedTuple):
    """The parts of a training run."""

    trainer: lightning.Trainer
    module: DDPM
    data: DataModule
    config: Mapping[str, Any]
    between: BetweenSteps

    def run(self) -> None:
        """Train, resuming the checkpoint if there is one.

        Raises:
            SystemExit: training was interrupted; the command that resumes it has been printed.
        """
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        if self.trainer.is_global_zero:
            report.summary(self.trainer, self.module, self.data, self.config)
        path = self.config["ckpt"] and os.path.abspath(self.config["ckpt"])  # Lightning interprets words such as "last"
        signals = self.between.signals
        signals.install()
        try:
            for logger in self.trainer.loggers:
                logger.log_hyperparams(dict(self.config))
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=True)
            if self.trainer.is_global_zero:
                report.results(self.trainer, self.module, self.config)
            if signals.asked:  # during the last checkpoint
                sys.exit(128 + signals.asked)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except Interrupted as stop:
            print(how_to_resume(stop, self.trainer, self.between.saved))
            sys.exit(128 + stop.signal)
        finally:
            signals.restore()
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbLogger) and self.trainer.is_global_zero:
                    logger.experiment.finish()  # otherwise the sweep's next job writes into this run


def experiment(cfg: DictConfig) -> Experiment:
    """Build every part of a run, and check that they fit together.

    Raises:
        ValueError: naming what does not fit, and what to do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report of trainer.profiler
    plan = planned(plain(cfg))
    config = plan.config
    lightning.seed_everything(config["seed"], verbose=False)  # the same initial weights on every process
    source = build.source(config)
    build.fetch(source)
    module = _module(plan, source)
    if config["compile"]:
        module.diffusion.network.compile()
    between = BetweenSteps(Signals(), partial(_begin, cfg, config))
    trainer = build_trainer(plan, module.diffusion.process, between)
    known = report.labels(trainer)
    if config["objective"] not in (None, *known):
        raise ValueError(f"objective must be one of {', '.join(known)}, got {config['objective']}")
    content = resume(config, module, trainer) if config["ckpt"] is not None else None
    data = DataModule(source, config["batch_size"], config["seed"], config["num_workers"])
    data.setup()
    if content is not None:
        loggers.go_on(trainer.loggers, content.get("wandb_id"))
        check_data(config, source, content["ddpm_config"]["image"], data.digest)
    TrainBatches(len(data.train), config["batch_size"], config["seed"], world=trainer.world_size)  # check that one fits
    speed.arrange(module, config["speed"], trainer.strategy.root_device)
    return Experiment(trainer, module, data, config, between)


def train(cfg: DictConfig) -> None:
    """Build a run and train; console output is also written to `train.log` in the run's folder."""
    built = experiment(cfg)
    with printed.kept(Path(cfg.output_dir) / LOG) if processes.share().rank == 0 else nullcontext():
        built.run()


def _begin(cfg: DictConfig, config: Mapping[str, Any], rows: int | None) -> None:
    """Write the configuration into the run's folder; cut the log of a continued run to the checkpoint's rows."""
    folder = Path(config["output_dir"])
    run_folder.describe(folder, cfg)
    if rows is not None and run_folder.goes_on(config["ckpt"], folder):
        run_folder.trim(folder / run_folder.METRICS, rows)


def _module(plan: Plan, source: Source) -> DDPM:
    config = plan.config
    loss = build.instance("loss", config["loss"])
    variance = build.variance(config["variance"], loss)
    conditioning = build.instance("conditioning", config["conditioning"])
    classes = conditioning.classes(source.classes)
    diffusion = build.diffusion(config, source.shape, source.levels, classes, variance)
    return DDPM(
        diffusion,
        loss,
        build.instance("time_sampler", config["time_sampler"], T=diffusion.T),
        build.optimizer(config["optimizer"]),
        EMA(diffusion.network, config["ema"]["decay"], config["ema"]["warm_up"]),
        config["warmup_steps"],
        config["seed"],
        conditioning,
        _stored(plan, source, classes),
    )


def _stored(plan: Plan, source: Source, classes: int) -> dict[str, Any]:
    """The configuration stored in checkpoints: what rebuilds and evaluates the model."""
    config = plan.config
    quality, bits_per_dim = (config["callbacks"].get(name, {}) for name in ("quality", "bits_per_dim"))
    return {key: config[key] for key in STORED & {*config}} | {
        "total_batch": plan.total_batch,
        "image": {
            "shape": list(source.shape),
            "levels": source.levels,
            "classes": classes,
            "class_names": list(source.classes),
        },
        "evaluation": {
            "features": quality.get("features", "inception"),
            "n_samples": quality.get("n_samples"),
            "clip": bits_per_dim.get("clip", False),
        },
    }
