"""The folder of a training run: whose it is, what it holds, and how a run goes on in it."""

import csv
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm import processes
from ddpm.files import as_json, write_csv

LAST = "last.ckpt"
METRICS = "metrics.csv"
RESULTS = "results.json"


@contextmanager
def claimed(cfg: DictConfig) -> Iterator[DictConfig | None]:
    """The job to do in the folder `cfg.output_dir`, which no other process may use meanwhile.

    A sweep that is repeated in its folder resumes a job from its last checkpoint, and leaves out, as None, one that has
    finished.

    Raises:
        ValueError: the folder holds another run, or another process is writing to it.
    """
    if processes.join().rank > 0:
        yield cfg  # the first process decides
        return
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to {folder}; choose another hydra.run.dir") from error
        for cut in folder.glob(".*.ckpt.*"):
            if cut.suffix[1:].isdigit():  # a checkpoint that was being written when its process was killed
                cut.unlink()
        try:
            yield _job(cfg, folder)
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def _job(cfg: DictConfig, folder: Path) -> DictConfig | None:
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not sweeping or cfg.ckpt is not None:
        check_free(folder, cfg.ckpt)
        return cfg
    if (folder / RESULTS).exists():
        _check_same(cfg, folder)
        print(f"finished before: {os.path.relpath(folder)}")
        return None
    if (folder / LAST).exists():
        print(f"resuming: {os.path.relpath(folder / LAST)}")
        cfg = cfg.copy()
        cfg.ckpt = str(folder / LAST)
    return cfg


def check_free(folder: Path, ckpt: str | None) -> None:
    """Refuse a folder that holds a run, unless that is the one to resume.

    Raises:
        ValueError: naming both ways out.
    """
    held = [name for name in (LAST, METRICS, RESULTS) if (folder / name).exists()]
    if held and (ckpt is None or not goes_on(ckpt, folder)):
        resume = f"resume it with ckpt={folder / LAST}, or " if LAST in held else ""
        raise ValueError(
            f"{folder} holds {', '.join(held)} of another run, which would be lost; "
            f"{resume}choose another hydra.run.dir"
        )


def goes_on(ckpt: str, folder: str | Path) -> bool:
    """Whether a run that resumes `ckpt` in `folder` continues the run that is there."""
    return Path(ckpt).resolve().parent == Path(folder).resolve()


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
    """What makes two runs the same: the configuration without where they write and what they resume."""
    return json.loads(as_json({key: value for key, value in config.items() if key not in ("output_dir", "ckpt")}))


def trim(path: Path, step: int) -> None:
    """Keep the rows of a metrics.csv up to a step; those behind it will be written again."""
    if not path.exists():
        return
    whole_lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    reader = csv.DictReader(whole_lines)
    kept = [row for row in reader if int(row["step"]) <= step]
    write_csv(path, kept, reader.fieldnames or [])


class KeepRuns(Callback):
    """Ends Hydra before it writes a new configuration over that of a run."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of the run."""
        HydraConfig.instance().set_config(config)  # which the name of the folder is made of
        try:
            check_free(Path(config.hydra.run.dir), config.ckpt)
        except ValueError as error:
            sys.exit(f"error: {error}")  # Hydra makes warnings of other exceptions
