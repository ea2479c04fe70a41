"""Sweeps on Hydra's launchers: every job ends in a folder of its own, on several processes too."""

import json
import os
import sys
from pathlib import Path

import pytest
import waiting

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ("hydra.launcher.n_jobs=2",)),
        ("submitit_local", ("hydra.launcher.timeout_min=100000", "trainer.devices=2")),
    ],
)
def test_a_sweep_on_a_launcher_trains_every_job_and_imports_nothing_from_the_current_folder(
    bare, tmp_path, hostile, launcher, options
):
    typed = [sys.executable, str(ROOT / "train.py"), "-m", *bare, "loss=simple,vlb", f"hydra/launcher={launcher}"]
    folders = (f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    done = waiting.run([*typed, *options, *folders], env=environment, cwd=hostile)
    assert not list(hostile.glob("RAN*"))
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads((tmp_path / job / "results.json").read_text())["config"]["loss"] for job in ("0", "1")]
    assert [loss["_target_"] for loss in losses] == ["ddpm.loss.simple.Simple", "ddpm.loss.vlb.VLB"]
    assert all((tmp_path / job / "last.ckpt").exists() for job in ("0", "1"))
