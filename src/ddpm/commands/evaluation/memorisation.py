"""Whether a model repeats its training images: the nearest one of each sample."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ddpm.commands import plots
from ddpm.commands.evaluation.base import Evaluation
from ddpm.commands.sample_metrics import draw, judge_of, protocol
from ddpm.commands.subject import Subject
from ddpm.data.scaling import as_uint8
from ddpm.metrics.base import Row
from ddpm.metrics.data_copying import Closer, closer, verdict
from ddpm.metrics.features import Extractor, Mirrored
from ddpm.metrics.neighbours import ELEMENTS, blocks, nearest

PAIRS = 10
"""Samples in the picture."""


class Memorisation(Evaluation):
    """Compares the distances of samples and of test images to the nearest training image, by features and by pixels.

    For data that is mirrored at random in training, the mirrored training images count as training images.

    Args:
        n_samples: number of samples, and of test images if there are as many.
    """

    rows = (
        Row("closer", "memorisation by features", "closer_error"),
        Row("closer_by_pixels", "memorisation by pixels", "closer_by_pixels_error"),
    )

    def __init__(self, n_samples: int = 1000) -> None:
        if n_samples < 2:
            raise ValueError(f"n_samples must be at least 2, got {n_samples}; 1000 is typical")
        self.n = n_samples

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        n_test = min(self.n, len(subject.test))
        if n_test < 2:
            raise ValueError(f"metrics=[memorisation] needs at least 2 test images to compare with, got {n_test}")
        judge = judge_of(subject, {}, self.n, also=frozenset({"features", "pixels"}))
        network = judge.network
        assert network is not None
        views: list[Extractor] = [network, Mirrored(network)] if subject.source.flip else [network]
        n_train = len(subject.train)

        def training(index: Tensor) -> Tensor:
            """Training images, uint8 in 0..255, (B, C, H, W); those from n_train on are mirrored."""
            images = as_uint8(subject.train.pixels(index % n_train), subject.model.levels)
            return torch.where((index < n_train).view(-1, 1, 1, 1), images, images.flip(-1))

        def pixels() -> Iterator[Tensor]:
            for index in torch.split(torch.arange(n_train * len(views)), max(1, ELEMENTS // math.prod(subject.shape))):
                yield training(index).flatten(1)

        def run(folder: Path) -> dict[str, Any]:
            samples = draw(subject, judge, subject.classes(judge.labels), "sampling for memorisation")
            held_out = judge.real(subject.test, n_test)
            features = torch.cat([judge.real(subject.train, extractor=view)["features"].cpu() for view in views])
            share: dict[str, Closer] = {}
            distance: dict[str, Tensor] = {}
            which: dict[str, Tensor] = {}
            for name, train in (("features", blocks(features)), ("pixels", pixels())):
                points = torch.cat([samples[name], held_out[name]]).flatten(1).cpu()
                found, index = (each[:, 0] for each in nearest(points, train))
                share[name], distance[name], which[name] = closer(found[: self.n], found[self.n :]), found, index
            closest = distance["features"][: self.n].argsort()[:PAIRS]
            nearby = {name: index[closest] for name, index in which.items()}
            if subject.leads:
                pictures = torch.stack(
                    [samples["pixels"].cpu()[closest], *(training(index) for index in nearby.values())]
                )
                rows = ["sample", *(f"nearest by {name}" for name in nearby)]
                title = "samples that are nearest to a training image, by features"
                figure = plots.tiles(pictures, [str(i) for i in closest.tolist()], rows, title)
                plots.save(figure, folder / "memorisation.png")
            return {
                "closer": share["features"].probability,
                "closer_error": share["features"].error,
                "closer_by_pixels": share["pixels"].probability,
                "closer_by_pixels_error": share["pixels"].error,
                "memorised": all(each.too_often for each in share.values()),
                "verdict": verdict(share["features"], share["pixels"]),
                "closest": {"samples": closest.tolist()}
                | {f"nearest_by_{name}": (index % n_train).tolist() for name, index in nearby.items()},
                "test_n": n_test,
                "mirrored": len(views) > 1,
                **protocol(subject, judge),
            }

        return run

    def of(self, found: dict[str, Any]) -> str:
        return "train, test images"

    def show(self, found: dict[str, Any], console: Console) -> None:
        print(found["verdict"])
