"""Evaluation of a checkpoint."""

import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm import build, checkpoint, cli
from ddpm.data.images import Images
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
    if cfg.data_root is not None:
        config["data"]["root"] = cfg.data_root
    source = build.source(config)
    train, test = source.load("train"), source.load("test")
    seed = config["seed"] if cfg.seed is None else cfg.seed
    of_samples = [name for name in cfg.metrics if name in fidelity.METRICS]
    quality = _quality(cfg, of_samples, model, source.shape, train, test, len(source.classes), config, seed)
    folder = cli.new_folder(Path(cfg.output_dir or Path(cfg.ckpt).parent), "evaluate")

    result: dict[str, Any] = {
        "checkpoint": os.path.basename(cfg.ckpt),
        "step": content["global_step"],
        "weights": cfg.weights,
        "seed": seed,
        "data": config["data"],
    }
    if "nll" in cfg.metrics:
        result["nll"] = _nll(
            cfg, model, train if cfg.split == "train" else test, seed, config["evaluation"]["n_images"]
        )
        _write(result, folder)
    if quality is not None:
        result["samples"] = quality(folder)
        _write(result, folder)
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


def _write(result: dict[str, Any], folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n")


def _quality(
    cfg: Any,
    metrics: Sequence[str],
    model: Diffusion,
    shape: tuple[int, int, int],
    train: Images,
    test: Images,
    classes: int,
    config: dict[str, Any],
    seed: int,
) -> Callable[[Path], dict[str, Any]] | None:
    """What draws and scores samples, once everything that it needs has been found; None if nothing is to be scored."""
    if not metrics:
        return None
    sampler_config = config["sampler"] if cfg.sampler is None else OmegaConf.to_container(cfg.sampler, resolve=True)
    sampler = build.sampler(sampler_config, model.T)
    features = cfg.features or config["evaluation"]["features"]
    network = feature_network(features, train, test, classes, model.levels, cfg.inception_weights)
    if network.accuracy is not None:
        print(f"features=classifier: test accuracy {network.accuracy:.1%}, network {network.digest}")
    n = cfg.n_samples or config["evaluation"]["n_samples"] or min(len(train), MOST_SAMPLES)
    fidelity.check_sizes(metrics, n, len(train))
    device = model.process.times.device

    def run(folder: Path) -> dict[str, Any]:
        def save(images: Tensor, index: Tensor) -> None:
            for image, i in zip(images.cpu(), index.tolist(), strict=True):
                save_png(image, folder / "samples" / f"{i:06d}.png")

        steps = sampler.chain(model).T
        with Steps("sampling", math.ceil(n / cfg.batch_size) * steps) as progress:
            samples = sample_features(
                model,
                sampler,
                network,
                shape,
                n,
                seed,
                cfg.batch_size,
                on_step=progress,
                on_batch=save if cfg.save_samples else lambda images, index: None,
            )
        real = partial(real_features, network=network, levels=model.levels, device=device, progress=True)
        reference = real(train) if set(metrics) != {"is"} else None
        scores = fidelity.fidelity(samples, reference, metrics)
        if reference is not None and "fid" in metrics:
            floor = real(test, n=n)
            scores["fid_floor"] = fidelity.fidelity(floor, reference, ["fid"])["fid"]
            scores["fid_floor_n"] = len(floor["features"])
            if scores["fid_floor_n"] < n:
                scores["warnings"].append(
                    f"the floor of FID is that of {scores['fid_floor_n']} test images, for {n} samples"
                )
        return scores | {
            "n": n,
            "reference": "train",
            "reference_n": len(train),
            "features": network.name,
            "features_dim": network.dim,
            "features_sha256": network.digest,
            "features_accuracy": network.accuracy,
            "resize": network.resize,
            "quantisation": f"rounded to {model.levels} grey levels, then to 0..255",
            "sampler": sampler_config,
            "steps": steps,
            "dtype": "float32",
        }

    return run


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
            table.add_row(label, value, str(found["fid_floor_n" if key == "fid_floor" else "n"]), of)
    Console().print(table)
    for warning in result.get("samples", {}).get("warnings", []):
        print(f"warning: {warning}")
