"""A small classifier of the data set as a feature network, for images that mean little to Inception.

Its penultimate layer replaces Inception's 2048 features, and its logits replace Inception's logits.
It is trained once on the labelled training images; its scores compare only runs on the same data with the same
classifier. Registered with torch-fidelity as `classifier`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from ddpm.data.images import Images
from ddpm.data.scaling import as_uint8
from ddpm.metrics.weights import NEITHER, load_weights
from ddpm.support import bars
from ddpm.support.cache import folder, kept
from ddpm.support.files import write_tensors

# Everything that affects the trained weights: the cache is keyed on it.
RECIPE = {"version": 1, "seed": 0, "dim": 64, "batch": 128, "lr": 5e-3, "examples": 60_000, "least_epochs": 3}
FORMAT = "ddpm classifier 1"


def network(channels: int, classes: int, size: Sequence[int]) -> nn.Sequential:
    """Convolutions that halve the image down to about 4x4, then `dim` features and the logits.

    Maps float (B, channels, H, W) to (B, classes); without its last layer, to the features (B, dim) >= 0.
    """
    height, width = size
    layers: list[nn.Module] = []
    for block in range(max(2, math.ceil(math.log2(max(size) / 4)))):
        wide = 16 * 2 ** min(block, 2)
        layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        if max(height, width) > 4:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        channels = wide
    dim = int(RECIPE["dim"])
    layers += [nn.Flatten(), nn.Linear(channels * height * width, dim, bias=False)]
    layers += [nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU


class Classifier(FeatureExtractorBase):
    """torch-fidelity's interface to a trained classifier.

    Args:
        name: its name in the registry, `classifier`.
        features_list: layers to return, of `features` (B, 64) and `logits` (B, classes), float32.
        feature_extractor_weights_path: a file written by `train_classifier`.

    Attributes:
        accuracy: fraction of the test images classified correctly, in 0..1.
    """

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, list(features_list))
        remedy = "delete it and train the classifier again (ddpm.metrics.classifier.train_classifier)"
        if feature_extractor_weights_path is None:
            raise ValueError("the classifier needs weights; pass the path that train_classifier returned")
        weights = load_weights(feature_extractor_weights_path, remedy)
        try:
            if weights["format"] != FORMAT:
                raise ValueError(f"format {weights['format']!r}")
            self.channels, self.classes = weights["channels"], weights["classes"]
            self.size, self.accuracy = tuple(weights["size"]), float(weights["accuracy"])
            with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global generator
                self.network = network(self.channels, self.classes, self.size)
            self.network.load_state_dict(weights["state_dict"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{feature_extractor_weights_path} is not a classifier file; {remedy}") from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The requested layers, in order, for uint8 RGB images (B, 3, H, W)."""
        if input.dtype != torch.uint8 or input.shape[1:] != (3, *self.size):
            raise ValueError(
                f"the classifier takes uint8 images of shape (B, 3, {self.size[0]}, {self.size[1]}), "
                f"got {input.dtype} {tuple(input.shape)}; use images of the size that it was trained on"
            )
        features = self.network[:-1](_scaled(input[:, : self.channels]))
        layers = {"features": features, "logits": self.network[-1](features)}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": "features", "kid": "features", "prc": "features"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False


register_feature_extractor("classifier", Classifier)


def train_classifier(images_train: Images, images_test: Images, classes: int | None, levels: int) -> Path:
    """Train the classifier of these images, unless it is in the cache; returns its file.

    The same images give the same file; the global random state is neither read nor changed. The file also
    holds the accuracy on the test images (`Classifier.accuracy`).

    Args:
        images_train, images_test: labelled splits of uint8 pixels (B, C, H, W) in 0..levels-1.
        classes: number of classes, at least 2; labels are in 0..classes-1.
        levels: number of grey levels.
    """
    if classes is None or classes < 2:
        raise ValueError(
            f"features=classifier needs labelled data with at least 2 classes, but this data has {classes or 0}; "
            f"use features=inception, {NEITHER}"
        )
    key = repr((sorted(RECIPE.items()), FORMAT, images_train.digest(), images_test.digest(), classes, levels))
    with _explained():
        return kept(
            f"classifier-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt",
            lambda path: write_tensors(path, _trained(images_train, images_test, classes, levels)),
        )


def _trained(images_train: Images, images_test: Images, classes: int, levels: int) -> dict[str, Any]:
    _, channels, *size = images_train.pixels(torch.arange(1)).shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(RECIPE["seed"]))
        net = network(channels, classes, size)
    _fit(net, images_train, levels)
    return {
        "format": FORMAT,
        "channels": channels,
        "classes": classes,
        "size": list(size),
        "accuracy": _accuracy(net, images_test, levels),
        "state_dict": net.state_dict(),
    }


@contextmanager
def _explained() -> Iterator[None]:
    """Explain what to do about a cache that is full."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the classifier of features=classifier cannot be saved in {folder()}: {error.strerror}; free some space "
            f"there, or set DDPM_CACHE to another folder"
        ) from error


def _fit(net: nn.Sequential, images: Images, levels: int) -> None:
    n = len(images)
    batch = min(int(RECIPE["batch"]), n)
    epochs = max(int(RECIPE["least_epochs"]), math.ceil(RECIPE["examples"] / n))
    steps = n // batch  # per epoch; the last, smaller batch is dropped, as the statistics of one image are undefined
    generator = torch.Generator().manual_seed(int(RECIPE["seed"]))
    optimizer = torch.optim.Adam(net.parameters(), lr=RECIPE["lr"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["lr"], epochs * steps)
    net.train()
    bar = bars.bar("training the classifier", epochs * steps, leave=False)
    with torch.enable_grad(), bar:
        for _ in range(epochs):
            for indices in torch.split(torch.randperm(n, generator=generator), batch)[:steps]:
                x = _scaled(as_uint8(images.pixels(indices), levels))
                loss = F.cross_entropy(net(x), images.labels[indices])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
    net.eval()


@torch.inference_mode()
def _accuracy(net: nn.Sequential, images: Images, levels: int) -> float:
    right = 0
    for indices in torch.split(torch.arange(len(images)), 1000):
        logits = net(_scaled(as_uint8(images.pixels(indices), levels)))
        right += int((logits.argmax(1) == images.labels[indices]).sum())
    return right / len(images)


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
