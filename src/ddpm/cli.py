"""What the three entry points share."""

import errno
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm import allocator, build, files, followers, processes, run_folder
from ddpm.command import shown
from ddpm.data.names import printable
from ddpm.files import expanded

EXPLAINED = (ValueError, OSError, OmegaConfBaseException, HydraException)
"""Errors that their message explains."""
FULL = "DDPM_FULL_ERROR"
"""Holds what HYDRA_FULL_ERROR was set to, also in the processes that a launcher of Hydra's starts."""


def start(entry: str, main: Callable[[], None]) -> None:
    """Run an entry point; what a user got wrong is one line, without a stack trace unless HYDRA_FULL_ERROR=1.

    Args:
        entry: a key of `followers.JOBS`.
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
    try:
        # As a shell does it for NAME=~/...; the grammar of Hydra's values has no ~ without quotes.
        sys.argv = [re.sub("^([^=]+=)(~.*)", lambda given: given[1] + expanded(given[2]), each) for each in sys.argv]
        followers.start(entry, main)
    except EXPLAINED as error:
        if full():
            raise
        sys.exit(explained(error))
    except KeyboardInterrupt as stop:
        if full():
            raise
        print(f"SIGINT: stopped; {str(stop) or 'what was written before is kept'}")
        sys.exit(128 + signal.SIGINT)


def job(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Ends a single run at an error that its message explains; in a sweep Hydra says which job it was."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except EXPLAINED as error:
            if full() or HydraConfig.get().mode != RunMode.RUN:
                raise
            sys.exit(explained(error))

    return wrapped


def full() -> bool:
    """Whether stack traces are asked for."""
    return os.environ.get(FULL) == "1"


def explained(error: BaseException) -> str:
    """What the user is told of an error of `EXPLAINED`."""
    if isinstance(error, HydraException):  # its own messages list options, one a line
        cause = error.__cause__
        text = re.sub("To append to your (config|default list) use", "If it is not misspelt, add it with", str(error))
        return f"{text}\n{cause}" if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(error, OSError) and error.strerror:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the path"
        where = f" {error.filename}" if error.filename else ""
        said = f"error: {error.strerror}:{where}; {remedy}, or choose another folder; what was written before is kept"
        return printable(said)
    return printable(f"error: {str(error).splitlines()[0]}")


def lead(entry: str, cfg: DictConfig | None) -> Any:
    """Carry out the job of an entry point, on as many processes as it asks for; None is nothing to do."""
    if cfg is None:
        return followers.lead(entry, None, 1)
    if entry != "train":
        _leave_what_is_asked(cfg.sampler)
    kind, asked = (cfg.trainer.accelerator, cfg.trainer.devices) if entry == "train" else (cfg.device, cfg.devices)
    return followers.lead(entry, cfg, processes.devices(kind, asked))


def _leave_what_is_asked(sampler: DictConfig) -> None:
    """Take the defaults that nobody has typed out of a chosen sampler: the training run's values come before them."""
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


@contextmanager
def new_folder(parent: Path, name: str, leads: bool = True, again: str = "repeat the command") -> Iterator[Path]:
    """A folder that did not exist before, for what a job writes; at the end it is said what that is.

    An error or an interrupt leaves what is finished, and no empty folder.

    Args:
        parent: where it is made.
        name: its first word; the time of day follows, and a number if need be.
        leads: whether this process makes it; the others are told where it is.
        again: what to do for the rest after an interrupt.
    Raises:
        KeyboardInterrupt: with what is kept, and how to go on.
    """
    made = [each for each in (parent, *parent.parents) if not each.exists()] if leads else []
    folder = Path(processes.agreed(str(_new_folder(parent, name)) if leads else None))
    try:
        yield folder
    except BaseException as error:
        if not leads:
            raise
        with suppress(OSError):  # what is not empty stays
            for each in (folder, *made):
                each.rmdir()
        kept = f"kept: {_listed(folder)}" if folder.exists() else "nothing was written"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{kept}; to go on: {again if folder.exists() else 'repeat the command'}") from None
        if folder.exists():
            print(kept)
        raise
    if leads:
        print(f"written: {_listed(folder)}")


def _listed(folder: Path) -> str:
    """The names of what is in a folder, and where that is."""
    return f"{', '.join(sorted(path.name for path in folder.iterdir()))} in {shown(folder)}"


def _new_folder(parent: Path, name: str) -> Path:
    try:
        return files.new_folder(parent / f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    except OSError as error:
        raise ValueError(f"cannot write to {parent}: {error.strerror}; choose another output_dir") from error
