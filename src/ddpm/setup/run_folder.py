"""The folder of a training run: its lock, its content, and how a run continues in it.

Nothing is written into a folder until it is known to belong to the run. Files that a run has left are replaced only
after the run that continues there has been checked completely.
"""

import csv
import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from ddpm.parallel import rendezvous
from ddpm.setup.shell import argument, quoted, shown
from ddpm.support.files import UNSUPPORTED, as_json, expanded, new_folder, warn_once, write_csv, written

LAST = "last.ckpt"
METRICS = "metrics.csv"
RESULTS = "results.json"
WANDB_LOG = "wandb/*/logs/debug-core.log"
"""The link that each W&B run leaves to its log in the user's cache; the next run makes its own folder."""


def found(ckpt: str | Path) -> Path:
    """The checkpoint file: `ckpt`, or if that is a folder, the last.ckpt in it."""
    path = Path(expanded(str(ckpt)))
    return path / LAST if path.is_dir() else path


@contextmanager
def claimed(cfg: DictConfig) -> Iterator[DictConfig | None]:
    """Lock the folder `cfg.output_dir` and yield the job to do in it.

    A sweep repeated in its folder resumes each job from its last checkpoint; for a finished job this yields None.

    Raises:
        ValueError: the folder holds another run or a link that leads out of it, or another process is writing to it.
    """
    if rendezvous.join().rank > 0:
        yield cfg  # the first process decides
        return
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    with _locked(folder):
        job = _job(cfg, folder)
        for cut in folder.glob(".*.ckpt.*"):
            if cut.suffix[1:].isdigit():  # a checkpoint that was being written when its process was killed
                cut.unlink()
        yield job


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out. The file is never removed, or one process could lock it and another its successor."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            raise ValueError(f"another run is writing to {folder}; choose another hydra.run.dir") from error
        if error.errno not in UNSUPPORTED:
            os.close(handle)
            raise
        warn_once("this file system has no locks: make sure that no two runs write to the same folder")
    try:
        yield
    finally:
        os.close(handle)


def check_links(folder: Path) -> None:
    """Reject a folder through which a run could write outside of it.

    Raises:
        ValueError: names a link that leads out of it, or an entry that is neither a file nor a folder.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) and path.match(WANDB_LOG):
                continue
            if stat.S_ISLNK(mode) and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"{path} is a link that leads out of the run's folder; remove it, or choose another hydra.run.dir"
                )
            if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise ValueError(f"{path} is neither a file nor a folder; remove it, or choose another hydra.run.dir")


def _job(cfg: DictConfig, folder: Path) -> DictConfig | None:
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not sweeping or cfg.ckpt is not None:
        check_free(folder, cfg.ckpt)
        return cfg
    if (folder / RESULTS).exists():
        _check_same(cfg, folder)
        print(f"already finished: {shown(folder)}")
        return None
    if (folder / LAST).exists():
        print(f"resuming: {shown(folder / LAST)}")
        cfg = cfg.copy()
        cfg.ckpt = str(folder / LAST)
    return cfg


def check_free(folder: Path, ckpt: str | None) -> None:
    """Reject a folder that holds a run, unless that is the one to resume.

    Raises:
        ValueError: the folder holds another run.
    """
    held = [name for name in (LAST, METRICS, RESULTS) if (folder / name).exists()]
    if held and (ckpt is None or not goes_on(ckpt, folder)):
        resume = f"resume it with {argument('ckpt', folder / LAST)}, or " if LAST in held else ""
        raise ValueError(
            f"{folder} holds {', '.join(held)} of another run, which would be lost; "
            f"{resume}choose another hydra.run.dir"
        )


def goes_on(ckpt: str, folder: str | Path) -> bool:
    """Whether a run that resumes `ckpt` in `folder` continues the run in it."""
    return found(ckpt).resolve().parent == Path(folder).resolve()


def _check_same(cfg: DictConfig, folder: Path) -> None:
    before = json.loads((folder / RESULTS).read_text())["config"]
    here = comparable(OmegaConf.to_container(cfg, resolve=True))
    differing = sorted(key for key in here | before if here.get(key) != before.get(key))
    if differing:
        raise ValueError(
            f"{folder} holds a finished run with other settings of {', '.join(differing)}; choose another "
            f"hydra.sweep.dir, or remove that folder"
        )


def comparable(config: Any) -> dict[str, Any]:
    """The configuration that identifies a run: without output folder, checkpoint and `other_data`."""
    left_out = ("output_dir", "ckpt", "other_data")
    return json.loads(as_json({key: value for key, value in config.items() if key not in left_out}))


def result(folder: str | Path, name: str) -> float:
    """The last value of a metric of a finished run.

    Raises:
        ValueError: the run did not measure it.
    """
    metrics = json.loads((Path(folder) / RESULTS).read_text())["metrics"]
    if name not in metrics:
        raise ValueError(f"objective={name} was not measured by {folder}; it has {', '.join(sorted(metrics))}")
    return float(metrics[name])


def rows(path: Path) -> int:
    """The number of rows in a metrics.csv."""
    if not path.exists():
        return 0
    with path.open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def trim(path: Path, rows: int) -> None:
    """Keep the first rows of a metrics.csv; the others will be written again."""
    if not path.exists():
        return
    whole_lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    reader = csv.DictReader(whole_lines)
    write_csv(path, list(reader)[:rows], reader.fieldnames or [])


def describe(folder: Path, cfg: DictConfig) -> None:
    """Write the configuration into `.hydra`; Hydra itself would do so before any check."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.instance().cfg
    for name, node in (("config", cfg), ("hydra", hydra), ("overrides", HydraConfig.get().overrides.task)):
        with written(folder / ".hydra" / f"{name}.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(node), encoding="utf-8")


class Folders(Callback):
    """Hydra callback that gives each run and sweep its own folder, and names the folders of a sweep's jobs."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder of a run."""
        HydraConfig.instance().set_config(config)  # the folder's name depends on it
        _number(config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder of a sweep, and name its jobs' folders after the options that differ."""
        HydraConfig.instance().set_config(config)
        _number(config.hydra.sweep)
        try:
            _keep_sweep(config)
        except ValueError as error:
            sys.exit(f"error: {error}")  # Hydra turns other exceptions into warnings
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        same = [quoted(each.key_or_group) for each in parsed if not each.is_sweep_override()]
        with read_write(config.hydra):
            config.hydra.overrides.hydra += [  # they go into each job's configuration
                "hydra.mode=MULTIRUN",  # which a study sets, but not its jobs
                f"hydra.sweep.dir={quoted(config.hydra.sweep.dir)}",
                f"hydra.job.config.override_dirname.exclude_keys=[{','.join(same)}]",
            ]


def _number(node: DictConfig) -> None:
    """Number a folder that is named after the time if another run started in the same second."""
    if "${now:" in OmegaConf.to_yaml(OmegaConf.masked_copy(node, "dir")):
        with read_write(node):
            node.dir = str(new_folder(Path(node.dir)))


def _keep_sweep(config: DictConfig) -> None:
    """Rename another sweep's description in the same folder, which Hydra would overwrite."""
    folder = Path(config.hydra.sweep.dir)
    check_links(folder)
    path = folder / "multirun.yaml"
    if path.exists() and OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") != config.hydra.overrides.task:
        path.rename(next(free for i in count(1) if not (free := folder / f"multirun_{i}.yaml").exists()))
