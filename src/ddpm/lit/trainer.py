"""Lightning's Trainer with the callbacks, loggers and processes of a run."""

import lightning
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from ddpm.chain.process import Process
from ddpm.lit.between_steps import BetweenSteps
from ddpm.lit.callbacks.checkpoint import WholeFiles
from ddpm.lit.devices import Joined
from ddpm.lit.plan import Plan
from ddpm.parallel import processes
from ddpm.setup import build


def build_trainer(plan: Plan, process: Process, between: BetweenSteps) -> lightning.Trainer:
    """The Trainer of a planned run.

    Args:
        plan: the planned run.
        process: the chain, which every configured sampler must fit.
        between: the callback that acts between two steps.
    Raises:
        ValueError: naming what does not fit.
    """
    config = plan.config
    build.sampler(config["sampler"], process)
    callbacks = [between, *_callbacks(plan, process)]
    built = {
        "callbacks": callbacks,
        "logger": [build.instance(f"logger.{name}", node) for name, node in config["logger"].items()],
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "default_root_dir": config["output_dir"],
        "plugins": [WholeFiles(), Joined() if processes.share().world > 1 else LightningEnvironment()],
    }
    if processes.share().world > 1:
        built["strategy"] = build.instance("strategy", config["strategy"])
    trainer: lightning.Trainer = build.instance("trainer", dict(plan.trainer), **built)
    return trainer


def _callbacks(plan: Plan, process: Process) -> list[lightning.Callback]:
    """The chosen callbacks; an experiment may also hold settings of others, which then have no target."""
    built = []
    for name, node in plan.config["callbacks"].items():
        if "sampler" in node:
            build.sampler(node["sampler"], process)
        if "_target_" in node:
            built.append(build.instance(f"callbacks.{name}", node))
    return built
