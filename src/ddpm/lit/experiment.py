"""A training run, built and checked as a whole before it starts."""

import logging
import os
import pkgutil
import shlex
import signal
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

import ddpm.lit.callbacks
from ddpm.chain.process import Process
from ddpm.data.batches import TrainBatches
from ddpm.data.source import Source
from ddpm.lit import loggers, report
from ddpm.lit.between_steps import BetweenSteps
from ddpm.lit.callbacks.checkpoint import WholeFiles
from ddpm.lit.datamodule import DataModule
from ddpm.lit.devices import Joined, devices
from ddpm.lit.interrupt import Interrupted, Signals
from ddpm.lit.module import DDPM
from ddpm.lit.resume import check_data, resume
from ddpm.model.ema import EMA
from ddpm.parallel import processes, rendezvous
from ddpm.setup import build, run_folder, speed
from ddpm.setup.schema import plain
from ddpm.setup.shell import argument, command
from ddpm.setup.targets import STORED
from ddpm.support import printed

EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the averaged network stays in evaluation mode
    r".*does not have many workers",  # data in memory needs none
    r".*treespec, LeafSpec",  # of Lightning's own code
    r"Grad strides do not match bucket view",  # of 1x1 convolutions, whose strides mean nothing
    r"It is recommended to use `self.log\('step'",  # the same on every process
)
GPU = ("cuda", "gpu")
LOG = "train.log"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Experiment(NamedTuple):
    """What a run consists of."""

    trainer: lightning.Trainer
    module: DDPM
    data: DataModule
    config: dict[str, Any]
    between: BetweenSteps

    def run(self) -> None:
        """Train, from the checkpoint if there is one.

        Raises:
            SystemExit: training was interrupted; a line has said how to go on.
        """
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        if self.trainer.is_global_zero:
            report.summary(self.trainer, self.module, self.data, self.config)
        path = self.config["ckpt"] and os.path.abspath(self.config["ckpt"])  # Lightning takes some words for others
        signals = self.between.signals
        signals.install()
        try:
            for logger in self.trainer.loggers:
                logger.log_hyperparams(self.config)
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=True)
            if self.trainer.is_global_zero:
                report.results(self.trainer, self.module, self.config)
            if signals.asked:  # amid the last checkpoint
                sys.exit(128 + signals.asked)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        except Interrupted as stop:
            print(_how_to_go_on(stop, self.trainer, self.between.saved))
            sys.exit(128 + stop.signal)
        finally:
            signals.restore()
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbLogger) and self.trainer.is_global_zero:
                    logger.experiment.finish()  # else the next job of a sweep would write into the same run


def experiment(cfg: DictConfig) -> Experiment:
    """Build every part of a run, and check that they fit together.

    Raises:
        ValueError: naming what does not fit, and what to do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report of trainer.profiler
    config = plain(cfg)
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2^32, got {config['seed']}")
    lightning.seed_everything(config["seed"], verbose=False)  # the same initial weights on every process
    config["callbacks"] = {name: node for name, node in config["callbacks"].items() if node is not None}
    source = build.source(config)
    build.fetch(source)
    module = _module(config, source)
    if config["compile"]:
        module.diffusion.network.compile()
    between = BetweenSteps(Signals(), partial(_begin, cfg, config))
    trainer = _trainer(config, module.diffusion.process, between)
    total_batch = config["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
    module.config = _stored(config, source, module.diffusion.classes) | {"total_batch": total_batch}
    if config["ckpt"] is not None:
        content = resume(config, module, trainer)
        loggers.go_on(trainer.loggers, content.get("wandb_id"))
    data = DataModule(source, config["batch_size"], config["seed"], config["num_workers"])
    data.setup()
    module.config["image"]["digest"] = processes.agreed(data.fingerprints() if trainer.is_global_zero else None)
    if config["ckpt"] is not None:
        check_data(config, source, content["ddpm_config"]["image"], module.config["image"]["digest"])
    TrainBatches(len(data.train), config["batch_size"], config["seed"], world=trainer.world_size)  # that one fits
    speed.arrange(module, config["speed"], trainer.strategy.root_device)
    return Experiment(trainer, module, data, config, between)


def train(cfg: DictConfig) -> None:
    """Build a run, and train; the run's folder keeps what is printed meanwhile, `train.log`."""
    built = experiment(cfg)
    with printed.kept(Path(cfg.output_dir) / LOG) if processes.share().rank == 0 else nullcontext():
        built.run()


def _begin(cfg: DictConfig, config: dict[str, Any], rows: int | None) -> None:
    """Write into the folder of the run what it starts with, and what it takes back of the run that it continues."""
    folder = Path(config["output_dir"])
    run_folder.describe(folder, cfg)
    if rows is not None and run_folder.goes_on(config["ckpt"], folder):
        run_folder.trim(folder / run_folder.METRICS, rows)


def _how_to_go_on(stop: Interrupted, trainer: lightning.Trainer, step: int) -> str:
    """Where the checkpoint is, and the command that resumes it."""
    name = signal.Signals(stop.signal).name
    if step < 0:
        return f"{name}: stopped; there is no checkpoint to resume"
    folder = os.path.relpath(trainer.default_root_dir)
    place = [argument("ckpt", Path(folder) / run_folder.LAST), argument("hydra.run.dir", folder)]
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is not None and hydra.mode == RunMode.MULTIRUN:
        line = f"repeat the command with {argument('hydra.sweep.dir', os.path.relpath(hydra.sweep.dir))}"
    elif rendezvous.started_together():
        line = f"repeat the command with {' '.join(place)}"
    else:
        typed = [] if hydra is None else sys.argv[1:]
        kept = [each for each in typed if each.lstrip("+").split("=")[0] not in ("ckpt", "hydra.run.dir")]
        line = command("train", *place, *map(shlex.quote, kept))
    return f"{name}: saved after step {step}; to go on: {line}"


def _module(config: dict[str, Any], source: Source) -> DDPM:
    loss = build.instance("loss", config["loss"])
    build.check_variance(loss, build.instance("variance", config["variance"]))
    conditioning = build.instance("conditioning", config["conditioning"])
    diffusion = build.diffusion(config, source.shape, source.levels, conditioning.classes(source.classes))
    return DDPM(
        diffusion,
        loss,
        build.instance("time_sampler", config["time_sampler"], T=diffusion.T),
        build.optimizer(config["optimizer"]),
        EMA(diffusion.network, config["ema"]["decay"], config["ema"]["warm_up"]),
        config["warmup_steps"],
        config["seed"],
        conditioning,
    )


def _stored(config: dict[str, Any], source: Source, classes: int) -> dict[str, Any]:
    """What a checkpoint holds of the configuration: what rebuilds and evaluates the model."""
    fid, bits_per_dim = (config["callbacks"].get(name, {}) for name in ("fid", "bits_per_dim"))
    return {key: config[key] for key in STORED & {*config}} | {
        "image": {
            "shape": list(source.shape),
            "levels": source.levels,
            "classes": classes,
            "class_names": list(source.classes),
        },
        "evaluation": {
            "features": fid.get("features", "inception"),
            "n_samples": fid.get("n_samples"),
            "clip": bits_per_dim.get("clip", False),
        },
    }


def _trainer(config: dict[str, Any], process: Process, between: BetweenSteps) -> lightning.Trainer:
    typed = {name: value for name, value in config["trainer"].items() if name != "precision"}  # checked below
    build.check_types("trainer", OmegaConf.create(typed))
    options: dict[str, Any] = {"max_steps": -1, "num_nodes": 1, "accumulate_grad_batches": 1}
    options |= {"accelerator": "auto", "devices": "auto"} | config["trainer"]
    for name in ("max_steps", "num_nodes", "accumulate_grad_batches", "log_every_n_steps", "val_check_interval"):
        value = options.get(name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"trainer.{name} must be at least 1, got {value}; training is counted in steps")
    if options["accelerator"] == "auto":
        options["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = speed.precision(config["speed"], torch.device("cuda" if options["accelerator"] in GPU else "cpu"))
    options["precision"] = precision = str(options.get("precision") or chosen)
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision}: the weights and their average "
            f"are kept in float32"
        )
    if options["accelerator"] == "mps":
        raise ValueError("trainer.accelerator=mps has no float64, which the tables need; use trainer.accelerator=cpu")
    if isinstance(options.get("val_check_interval"), int):
        options["val_check_interval"] *= options["accumulate_grad_batches"]  # Lightning counts batches
    if config["strategy"].get("static_graph") and options["accumulate_grad_batches"] > 1:
        raise ValueError(
            "strategy.static_graph=true does not go with trainer.accumulate_grad_batches="
            f"{options['accumulate_grad_batches']}; give strategy.static_graph=false"
        )
    _match_processes(options)
    build.sampler(config["sampler"], process)
    callbacks = [between, *_callbacks(config, process)]
    chosen_loggers = [build.instance(f"logger.{name}", node) for name, node in config["logger"].items()]
    fixed = {
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "limit_train_batches": 1.0,
        "overfit_batches": 0.0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "default_root_dir": config["output_dir"],
        "plugins": [WholeFiles(), Joined() if processes.share().world > 1 else LightningEnvironment()],
    }
    if processes.share().world > 1:
        fixed["strategy"] = build.instance("strategy", config["strategy"])
    for name in {"callbacks", "logger", "strategy", *fixed} & set(options):
        raise ValueError(
            f"trainer.{name} is set by ddpm itself; trainer.max_steps is the length of a run, the groups callbacks, "
            f"logger and strategy say what is shown and kept, and how processes share the work"
        )
    trainer: lightning.Trainer = build.instance("trainer", options, callbacks=callbacks, logger=chosen_loggers, **fixed)
    return trainer


def _match_processes(options: dict[str, Any]) -> None:
    """Let Lightning expect the processes that there are, or say which ones there should be."""
    world, nodes = processes.share().world, options["num_nodes"]
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if world > 1 else 1
    if options["devices"] == "auto":
        options["devices"] = local
    wanted = devices(options["accelerator"], options["devices"])
    if wanted * nodes != world:
        raise ValueError(
            f"trainer.devices={options['devices']} and trainer.num_nodes={nodes} are {wanted * nodes} processes, but "
            f"{world} run; several nodes are started by torchrun or Slurm, one process for each device"
        )


def _callbacks(config: dict[str, Any], process: Process) -> list[lightning.Callback]:
    """The callbacks that are chosen; an experiment may hold settings of others, which have no target then."""
    known = sorted(module.name for module in pkgutil.iter_modules(ddpm.lit.callbacks.__path__))
    built = []
    for name, node in config["callbacks"].items():
        if "_target_" not in node and name not in known:
            raise ValueError(f"callbacks.{name} has no _target_; the callbacks are {', '.join(known)}")
        if "sampler" in node:
            build.sampler(node["sampler"], process)
        if "_target_" in node:
            built.append(build.instance(f"callbacks.{name}", node))
    return built
