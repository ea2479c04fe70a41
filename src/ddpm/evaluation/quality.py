"""FID and its relatives of samples."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.grid import save_png
from ddpm.metrics import fidelity
from ddpm.metrics.features import shared_network
from ddpm.metrics.quality import real_features, sample_features
from ddpm.progress import Steps
from ddpm.subject import Subject

MOST_SAMPLES = 50_000
"""The protocol of Ho et al. 2020 asks for this many."""


def prepare(subject: Subject, metrics: Sequence[str]) -> Callable[[Path], dict[str, Any]]:
    """Find everything that is needed; what is returned draws samples and scores them."""
    cfg, config, model = subject.cfg, subject.config, subject.model
    train, test = subject.train, subject.test
    sampler = subject.sampler
    features = cfg.features or config["evaluation"]["features"]
    network = shared_network(features, train, test, len(subject.source.classes), model.levels, cfg.inception_weights)
    if network.accuracy is not None:
        print(f"features=classifier: test accuracy {network.accuracy:.1%}, network {network.digest}")
    n = cfg.n_samples or config["evaluation"]["n_samples"] or min(len(train), MOST_SAMPLES)
    fidelity.check_sizes(metrics, n, len(train))
    share = subject.share
    if n < share.world:
        raise ValueError(f"n_samples must be at least {share.world}, one for each process, got {n}")

    def run(folder: Path) -> dict[str, Any]:
        def save(images: Tensor, index: Tensor) -> None:
            for image, i in zip(images.cpu(), index.tolist(), strict=True):
                save_png(image, folder / "samples" / f"{i:06d}.png")

        steps = sampler.chain(model).T
        with Steps("sampling", math.ceil(len(share.of(n)) / cfg.batch_size) * steps, subject.leads) as progress:
            samples = sample_features(
                subject.sampled,
                sampler,
                network,
                subject.shape,
                n,
                subject.seed,
                cfg.batch_size,
                share,
                on_step=progress,
                on_batch=save if cfg.save_samples else lambda images, index: None,
            )
        real = partial(real_features, network=network, levels=model.levels, share=share, device=subject.device)
        real = partial(real, progress=subject.leads)
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
            "sampler": subject.sampler_config,
            "steps": steps,
            "dtype": "float32",
            "samples_dtype": subject.sampled_dtype,
        }

    return run
