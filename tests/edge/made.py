"""Folders as training runs leave them, without training."""

import csv
import json

import numpy as np
import yaml
from PIL import Image

CONFIG = {
    "schedule": {"_target_": "ddpm.schedule.linear.Linear", "T": 1000},
    "parameterization": {"_target_": "ddpm.parameterization.eps.Eps"},
    "loss": {"_target_": "ddpm.loss.simple.Simple"},
    "data": {"_target_": "ddpm.data.digits.Digits", "flip": False},
    "trainer": {"max_steps": 300},
    "sampler": {"_target_": "ddpm.sampler.ancestral.Ancestral", "steps": 50},
    "callbacks": {
        "samples": {"sampler": "${sampler}", "seed": "${seed}"},
        "quality": {"n_samples": 360, "sampler": "${sampler}", "seed": "${seed}"},
    },
    "logger": {"csv": {"save_dir": "${output_dir}"}},
    "seed": 0,
    "ckpt": None,
    "other_data": False,
    "output_dir": "${output_dir:}",
}


def run(
    folder, seed=0, options=(), finished=True, metrics=None, steps=range(10, 301, 10), log="", typed=(), evaluations=()
):
    """Write a run: `options` by dotted name, `metrics` in its results, `evaluations` the contents of metrics.json."""
    config = json.loads(json.dumps(CONFIG)) | {"seed": seed}
    for name, value in options:
        *parents, last = name.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"seed={seed}", *typed]))
    (folder / "train.log").write_text(f"folder: {folder}\n{log}")
    rng = np.random.default_rng(seed)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "seconds", "train/loss", "val/loss", "bits_per_dim", "fid", "train/gradient_norm"])
        for step in steps:
            loss = 1 / step + rng.normal(0, 1e-4)
            writer.writerow([step, step / 50 * (1 + 0.1 * seed), loss, "", "", "", 1.0])
            if step % 100 == 0:
                writer.writerow([step, "", "", loss * 1.1, 3 + 100 / step, 900 / step, ""])
    if finished:
        values = {"fid": 3.0, "bits_per_dim": 3.3, "samples_n": 360, "train/loss": 0.1} | (metrics or {})
        write = {"steps": max(steps), "metrics": values, "warnings": [], "config": config}
        (folder / "results.json").write_text(json.dumps(write))
    (folder / "samples").mkdir()
    Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(folder / "samples" / "step_0000300.png")
    for i, values in enumerate(evaluations):
        (folder / f"evaluate_{i}").mkdir()
        (folder / f"evaluate_{i}" / "metrics.json").write_text(
            json.dumps({"step": max(steps), "weights": "ema"} | values)
        )
    return folder
