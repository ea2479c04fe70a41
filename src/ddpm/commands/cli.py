"""The four commands: `python train.py ...` in a checkout, `ddpm train ...` with the installed package.

Heavy modules are imported by the job that needs them, so that `--help` is fast.
"""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from io import TextIOWrapper
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm import __version__
from ddpm.commands.errors import EXPLAINED, FULL, explained, full
from ddpm.kernels import allocator
from ddpm.parallel import module_path
from ddpm.setup import resolvers
from ddpm.setup.schema import CONF
from ddpm.support.files import expanded

resolvers.register()  # here, because the processes of Hydra's launchers import this file


def job(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn user errors of a single run into a one-line exit; in a sweep, Hydra reports which job failed."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            check(cfg)
            return main(cfg)
        except EXPLAINED as error:
            if full() or HydraConfig.get().mode != RunMode.RUN:
                raise
            sys.exit(explained(error))

    return wrapped


@job
def train(cfg: DictConfig) -> float | None:
    """A job of train.py; returns the value of the objective, if one is named, to the sweeper."""
    from ddpm.setup import run_folder

    with run_folder.claimed(cfg) as claimed:
        lead("train", claimed)
    return None if cfg.objective is None else run_folder.result(cfg.output_dir, cfg.objective)


@job
def evaluate(cfg: DictConfig) -> None:
    """The job of evaluate.py."""
    lead("evaluate", cfg)


@job
def sample(cfg: DictConfig) -> None:
    """The job of sample.py."""
    lead("sample", cfg)


COMMANDS = {"train": train, "evaluate": evaluate, "sample": sample}
USAGE = """Denoising diffusion probabilistic models.

  ddpm train ...       train a model; resume a run
  ddpm evaluate ...    compute FID, IS, bits/dim and more for a checkpoint
  ddpm sample ...      sample from a checkpoint, interpolate, solve inverse problems
  ddpm report ...      write an HTML file that compares runs

  ddpm train --help    list the options of a command
  ddpm --version"""


def main() -> None:
    """The console command `ddpm`."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [sys.argv[0], *rest]
        run(name)
    elif name == "report":
        sys.argv = [sys.argv[0], *rest]
        report()
    elif name == "--version":
        print(__version__)
    elif name in ("--help", "-h"):
        print(USAGE)
    else:
        sys.exit(f"error: there is no command {name!r}; the commands are {', '.join([*COMMANDS, 'report'])}")


def run(name: str) -> None:
    """Run a command with the arguments in `sys.argv`."""
    start(name, hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(COMMANDS[name]))


def report() -> None:
    """Run the one command that is not configured by Hydra, with what is typed behind it."""
    from ddpm.reporting import command

    scripts = {"report.py": "python train.py", "__main__.py": "python -m ddpm train"}  # no path of this machine
    program = scripts.get(os.path.basename(sys.argv[0]), "ddpm train")
    start("report", lambda: command.report(sys.argv[1:], program))


def start(name: str, main: Callable[[], None]) -> None:
    """Run a command; user errors end in one line, without a stack trace unless HYDRA_FULL_ERROR=1.

    Args:
        name: name of the command.
        main: Hydra's main function, which calls `lead` for each job.
    """
    os.environ[FULL] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises errors instead of printing them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that support only ASCII
    if os.path.expanduser("~") == "~":
        sys.exit("error: there is no home directory for the caches and settings of libraries; set HOME to a folder")
    allocator.keep_memory()
    module_path.hand_down()
    try:
        # Expand NAME=~/... as a shell does; Hydra's grammar does not allow an unquoted ~ in values.
        sys.argv = [re.sub("^([^=]+=)(~.*)", lambda given: given[1] + expanded(given[2]), each) for each in sys.argv]
        if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & {*os.environ}:
            from ddpm.commands import followers

            followers.start(name, main)
        else:
            main()
    except BrokenPipeError:  # the program reading the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except EXPLAINED as error:
        if full():
            raise
        sys.exit(explained(error))
    except KeyboardInterrupt as stop:
        if full():
            raise
        print(f"SIGINT: stopped; {str(stop) or 'files already written are kept'}")
        sys.exit(128 + signal.SIGINT)


def lead(name: str, cfg: DictConfig | None) -> Any:
    """Run the job of a command on as many processes as it requests; None means that there is nothing to do."""
    from ddpm.commands import followers
    from ddpm.lit.devices import devices

    if cfg is None:
        return followers.lead(name, None, 1)
    if name != "train":
        _leave_what_is_asked(cfg.sampler)
    kind, asked = (cfg.trainer.accelerator, cfg.trainer.devices) if name == "train" else (cfg.device, cfg.devices)
    return followers.lead(name, cfg, devices(kind, asked))


def _leave_what_is_asked(sampler: DictConfig) -> None:
    """Remove a sampler's defaults unless they were typed: values from the training run take precedence."""
    from ddpm.setup import build

    typed = OverridesParser.create().parse_overrides([*HydraConfig.get().overrides.task])
    given = {each.key_or_group for each in typed}
    for name, default in build.keywords(sampler).items():
        if f"sampler.{name}" not in given and name in sampler and sampler[name] == default:
            del sampler[name]


def check(cfg: DictConfig) -> None:
    """Reject unknown keys and missing values; expand `~` in paths, and resolve `ckpt` to a file.

    Raises:
        ValueError: naming them.
    """
    from ddpm.setup import run_folder

    _check_keys(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; give {missing[0]}=...")
    _expand(cfg)
    if cfg.ckpt is not None:
        cfg.ckpt = str(run_folder.found(cfg.ckpt))


def _expand(node: DictConfig | ListConfig) -> None:
    """Replace a leading `~` by the home directory; no value except a path begins with it."""
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        value = None if OmegaConf.is_interpolation(node, key) else node[key]
        if isinstance(value, str) and value.startswith("~"):
            node[key] = expanded(value)
        elif isinstance(value, DictConfig | ListConfig):
            _expand(value)


def _check_keys(cfg: DictConfig, path: str = "") -> None:
    """Reject keys that are not in the schema: Hydra accepts `+key=value`, and suggests it for misspelt keys."""
    schema = OmegaConf.get_type(cfg)
    if schema is None or not is_dataclass(schema):
        return
    known = [field.name for field in fields(schema)]
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(f"there is no key {path}{key}; the keys are {', '.join(path + name for name in known)}")
        value = None if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key) else cfg[key]
        if isinstance(value, DictConfig):
            _check_keys(value, f"{path}{key}.")
