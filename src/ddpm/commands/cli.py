"""The four commands: `python train.py ...` in a checkout, `ddpm train ...` where the package is installed.

What is heavy to import is imported by the job that needs it, so that `--help` is shown at once.
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

resolvers.register()  # here, so that the processes of Hydra's launchers, which import this file, know them too


def job(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Ends a single run at an error that its message explains; in a sweep Hydra says which job it was."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> None:
        try:
            check(cfg)
            main(cfg)
        except EXPLAINED as error:
            if full() or HydraConfig.get().mode != RunMode.RUN:
                raise
            sys.exit(explained(error))

    return wrapped


@job
def train(cfg: DictConfig) -> None:
    """A job of train.py."""
    from ddpm.setup import run_folder

    with run_folder.claimed(cfg) as claimed:
        lead("train", claimed)


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
  ddpm evaluate ...    FID, IS, bits/dim and more of a checkpoint
  ddpm sample ...      samples of a checkpoint, and what else sampling does
  ddpm report ...      an HTML file that compares runs

  ddpm train --help    options of a command
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
    """Run a command with what is typed behind it."""
    start(name, hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(COMMANDS[name]))


def report() -> None:
    """Run the one command that is not configured by Hydra, with what is typed behind it."""
    from ddpm.reporting import command

    scripts = {"report.py": "python train.py", "__main__.py": "python -m ddpm train"}  # no path of this machine
    program = scripts.get(os.path.basename(sys.argv[0]), "ddpm train")
    start("report", lambda: command.report(sys.argv[1:], program))


def start(name: str, main: Callable[[], None]) -> None:
    """Run a command; what a user got wrong is one line, without a stack trace unless HYDRA_FULL_ERROR=1.

    Args:
        name: of the command.
        main: Hydra's; it calls `lead` for each job.
    """
    os.environ[FULL] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises errors instead of printing them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # where a terminal knows ASCII alone
    if os.path.expanduser("~") == "~":
        sys.exit("error: there is no home directory, where caches and settings of libraries are; set HOME to a folder")
    allocator.keep_memory()
    module_path.hand_down()
    try:
        # As a shell does it for NAME=~/...; the grammar of Hydra's values has no ~ without quotes.
        sys.argv = [re.sub("^([^=]+=)(~.*)", lambda given: given[1] + expanded(given[2]), each) for each in sys.argv]
        if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & {*os.environ}:
            from ddpm.commands import followers

            followers.start(name, main)
        else:
            main()
    except BrokenPipeError:  # whoever read the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except EXPLAINED as error:
        if full():
            raise
        sys.exit(explained(error))
    except KeyboardInterrupt as stop:
        if full():
            raise
        print(f"SIGINT: stopped; {str(stop) or 'what was written before is kept'}")
        sys.exit(128 + signal.SIGINT)


def lead(name: str, cfg: DictConfig | None) -> Any:
    """Carry out the job of a command, on as many processes as it asks for; None is nothing to do."""
    from ddpm.commands import followers
    from ddpm.lit.devices import devices

    if cfg is None:
        return followers.lead(name, None, 1)
    if name != "train":
        _leave_what_is_asked(cfg.sampler)
    kind, asked = (cfg.trainer.accelerator, cfg.trainer.devices) if name == "train" else (cfg.device, cfg.devices)
    return followers.lead(name, cfg, devices(kind, asked))


def _leave_what_is_asked(sampler: DictConfig) -> None:
    """Take the defaults that nobody has typed out of a chosen sampler: the training run's values come before them."""
    from ddpm.setup import build

    typed = OverridesParser.create().parse_overrides([*HydraConfig.get().overrides.task])
    given = {each.key_or_group for each in typed}
    for name, default in build.keywords(sampler).items():
        if f"sampler.{name}" not in given and name in sampler and sampler[name] == default:
            del sampler[name]


def check(cfg: DictConfig) -> None:
    """Refuse keys that no schema has, and values that are missing; write out `~` in paths, and the file of `ckpt`.

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
    """Put the home directory in place of `~`, with which no value begins but a path."""
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        value = None if OmegaConf.is_interpolation(node, key) else node[key]
        if isinstance(value, str) and value.startswith("~"):
            node[key] = expanded(value)
        elif isinstance(value, DictConfig | ListConfig):
            _expand(value)


def _check_keys(cfg: DictConfig, path: str = "") -> None:
    """Hydra lets `+key=value` add a key that the schema does not have, and advises it for one that is misspelt."""
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
