"""Evaluation of a checkpoint."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm import build, checkpoint, cli
from ddpm.data.source import check_split
from ddpm.diffusion import Diffusion
from ddpm.grid import save_png
from ddpm.metrics import fidelity
from ddpm.metrics.features import feature_network
from ddpm.metrics.nll import bound_of
from ddpm.metrics.quality import real_features, sample_features
from ddpm.progress import Steps

METRICS = (*fidelity.METRICS, "nll")
MOST_SAMPLES = 50_000
"""The protocol of Ho et al. 2020 asks for this many."""


def evaluate(cfg: Any) -> dict[str, Any]:
    """Compute the metrics that are asked for, and write them to `metrics.json` in a new folder.

    Args:
        cfg: an `EvaluateConfig`.
    Returns:
        The content of the file: for every metric its value and what defines it.
    """
    unknown = [name for name in cfg.metrics if name not in METRICS]
    if unknown or not cfg.metrics:
        raise ValueError(f"metrics must be of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    check_split(cfg.split)
    for name, value in (
        ("batch_size", cfg.batch_size),
        ("n_samples", cfg.n_samples),
        ("nll.n_images", cfg.nll.n_images),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    if cfg.seed is not None and cfg.seed < 0:
        raise ValueError(f"seed must be at least 0, got {cfg.seed}")
    content = checkpoint.read(cfg.ckpt, cfg.trusted)
    config = content["ddpm_config"]
    model = checkpoint.model(content, cfg.weights).to(cli.device(cfg.device))
    source = build.source(config)
    seed = config["seed"] if cfg.seed is None else cfg.seed
    folder = cli.new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "evaluate")

    result: dict[str, Any] = {
        "checkpoint": os.path.basename(cfg.ckpt),
        "step": content["global_step"],
        "weights": cfg.weights,
        "seed": seed,
        "data": config["data"],
    }
    if "nll" in cfg.metrics:
        result["nll"] = _nll(cfg, model, source.load(cfg.split), seed, config["evaluation"]["n_images"])
    of_samples = [name for name in cfg.metrics if name in fidelity.METRICS]
    if of_samples:
        result["samples"] = _quality(cfg, of_samples, model, source, config, seed, folder)

    (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    _show(result)
    print(f"written: {os.path.relpath(folder / 'metrics.json')}")
    return result


def _nll(cfg: Any, model: Diffusion, images: Any, seed: int, trained_n: int | None) -> dict[str, Any]:
    n = min(len(images), cfg.nll.n_images or trained_n or len(images))
    with Steps("bits/dim", math.ceil(n / cfg.batch_size) * model.T) as progress:
        bound = bound_of(model, images, n, seed, cfg.batch_size, cfg.nll.clip, on_step=progress)
    return bound.summary() | {
        "unit": "bits/dim",
        "n": n,
        "split": cfg.split,
        "levels": model.levels,
        "terms": model.T,
        "x_0_clipped": cfg.nll.clip,
        "dtype": "float32",
    }


def _quality(
    cfg: Any,
    metrics: Sequence[str],
    model: Diffusion,
    source: Any,
    config: dict[str, Any],
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    sampler_config = config["sampler"] if cfg.sampler is None else cfg.sampler
    sampler = build.sampler(sampler_config, model.T)
    train, test = source.load("train"), source.load("test")
    network = feature_network(
        cfg.features or config["evaluation"]["features"],
        train,
        test,
        len(source.classes),
        source.levels,
        cfg.inception_weights,
    )
    n = cfg.n_samples or config["evaluation"]["n_samples"] or min(len(train), MOST_SAMPLES)
    device = model.process.times.device

    def save(images: Tensor, index: Tensor) -> None:
        for image, i in zip(images.cpu(), index.tolist(), strict=True):
            save_png(image, folder / "samples" / f"{i:06d}.png")

    reference = real_features(train, network, source.levels, device=device, progress=True)
    floor = real_features(test, network, source.levels, n, device=device, progress=True)
    steps = math.ceil(n / cfg.batch_size) * sampler.chain(model).T
    with Steps("sampling", steps) as progress:
        samples = sample_features(
            model,
            sampler,
            network,
            source.shape,
            n,
            seed,
            cfg.batch_size,
            on_step=progress,
            on_batch=save if cfg.save_samples else lambda images, index: None,
        )
    scores = fidelity.fidelity(samples, reference, metrics)
    floor_n = len(floor["features"])
    if "fid" in metrics:
        scores["fid_floor"] = fidelity.fidelity(floor, reference, ["fid"])["fid"]
        if floor_n < n:
            scores["warnings"].append(f"the floor of FID is that of {floor_n} test images, for {n} samples")
    return scores | {
        "n": n,
        "floor_n": floor_n,
        "reference": "train",
        "reference_n": len(train),
        "features": network.name,
        "features_dim": network.dim,
        "features_sha256": network.digest,
        "features_accuracy": network.accuracy,
        "resize": network.resize,
        "quantisation": f"rounded to {source.levels} grey levels, then to 0..255",
        "sampler": dict(sampler_config),
        "steps": sampler.chain(model).T,
        "dtype": "float32",
    }


ROWS = {
    "bits_per_dim": ("bits/dim", "nll", "standard_error"),
    "prior": ("  prior L_T", "nll", None),
    "rate": ("  rate L_1 + ... + L_T", "nll", None),
    "distortion": ("  distortion L_0", "nll", None),
    "fid": ("FID", "samples", None),
    "fid_floor": ("  of real test images (floor)", "samples", None),
    "is_mean": ("IS", "samples", "is_std"),
    "kid_mean": ("KID", "samples", "kid_std"),
    "precision": ("precision", "samples", None),
    "recall": ("recall", "samples", None),
}


def _show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['checkpoint']}, step {result['step']:,}, {result['weights']} weights",
        title_justify="left",
    )
    for column in ("metric", "value", "N", "of"):
        table.add_column(column)
    for key, (label, part, spread) in ROWS.items():
        found = result.get(part, {})
        if key in found:
            value = f"{found[key]:.4g}" + (f" ± {found[spread]:.2g}" if spread else "")
            of = f"{found['split']} images" if part == "nll" else f"{found['features']} features"
            table.add_row(label, value, str(found["floor_n" if key == "fid_floor" else "n"]), of)
    Console().print(table)
    for warning in result.get("samples", {}).get("warnings", []):
        print(f"warning: {warning}")
