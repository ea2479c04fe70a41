"""torch-fidelity's InceptionV3, `inception-v3-compat`: the TensorFlow weights of 2015 that the papers use.

torch-fidelity reads weights with a full unpickler; here they are first read as plain tensors, and only those
are passed on.
"""

import functools
import io
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    BasicConv2d,
    FeatureExtractorInceptionV3,
    InceptionA,
    InceptionC,
)

from ddpm.kernels.convolution import Rectified, serves
from ddpm.metrics.weights import NEITHER, load_weights

FILE_NAME = URL_INCEPTION_V3.rsplit("/", 1)[-1]
SHA256_PREFIX = "6726825d"  # also the end of the file name, as torch.hub expects
TIMEOUT = 10  # seconds without an answer


def default_path() -> Path:
    """Where torch-fidelity looks for its weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


def inception(
    weights: str | Path | None = None, layers: Sequence[str] = ("2048", "logits_unbiased")
) -> FeatureExtractorInceptionV3:
    """torch-fidelity's FeatureExtractorInceptionV3, on the CPU and in eval mode.

    Args:
        weights: a file in torch-fidelity's format; None uses torch-fidelity's cache, or downloads it.
        layers: names of the layers to return, in this order.

    Raises:
        ValueError: if the weights cannot be found or read; it names the file to provide.
    """
    path = default_path() if weights is None else Path(weights).expanduser()
    if weights is None and not path.is_file():
        _download(path)
    remedy = (
        f"pass inception_weights=PATH, a copy of {URL_INCEPTION_V3}, or features=classifier for data with classes, "
        f"{NEITHER}"
    )
    buffer = io.BytesIO()
    torch.save(load_weights(path, remedy), buffer)
    buffer.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global generator
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", list(layers), feature_extractor_weights_path=buffer
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not hold the weights of torch-fidelity's InceptionV3; {remedy}") from error


class Folded(nn.Module):
    """The extractor's features and logits, computed faster: uint8 images (B, 3, H, W) -> (B, 2048), (B, 1008).

    Batch normalisations are folded into the convolutions, the layout is channels-last, most average pooling follows the
    convolution that reduces the channels, and images are resized by two matrix products.

    Args:
        extractor: in evaluation mode; its layers are reused and modified.
    """

    def __init__(self, extractor: FeatureExtractorInceptionV3) -> None:
        super().__init__()
        for parent in [*extractor.modules()]:
            for name, layer in [*parent.named_children()]:
                if isinstance(layer, BasicConv2d):
                    setattr(parent, name, _rectified(fuse_conv_bn_eval(layer.conv, layer.bn)))
        *layers, self.fc = extractor.children()
        parts = (Branches(layer) if isinstance(layer, (InceptionA, InceptionC)) else layer for layer in layers)
        self.layers = nn.Sequential(*parts)
        self.size = extractor.INPUT_IMAGE_SIZE
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images.float() - 128) / 128
        rows, columns = (_interpolation(size, self.size, x.device) for size in x.shape[2:])
        features = self.layers(rows @ (x @ columns.T)).flatten(1)
        return features, features @ self.fc.weight.T


class Branches(nn.Module):
    """An Inception block of convolutions with ReLU in branches, named branch..._1, _2, and so on, and branch_pool.

    The average pooling of branch_pool follows its convolution: both are linear, and pooling fewer channels is faster.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        branches: dict[str, list[nn.Module]] = {}
        for name, layer in block.named_children():
            branches.setdefault(name.rsplit("_", 1)[0], []).append(layer)
        conv, relu = branches.popitem()[1][0].children()  # branch_pool is the last
        branches["mean"] = [conv, nn.AvgPool2d(3, 1, 1, count_include_pad=False), relu]
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches.values())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _rectified(conv: nn.Conv2d) -> nn.Module:
    """max(conv(x), 0), by Winograd convolution if there is one for this kernel."""
    if not serves(conv):
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    conv.__class__ = Rectified
    return conv


@functools.lru_cache(8)
@torch.inference_mode(False)  # otherwise a first call in inference mode would cache an inference tensor
def _interpolation(size: int, out: int, device: torch.device) -> Tensor:
    """The matrix (out, size) of bilinear interpolation as in TensorFlow 1: pixel i is at i size / out."""
    place = torch.arange(out, dtype=torch.float32) * torch.tensor(size / out)
    low = place.long()
    share = (place - low)[:, None]
    below, above = F.one_hot(low, size), F.one_hot((low + 1).clamp(max=size - 1), size)
    return ((1 - share) * below + share * above).to(device)


def _download(path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        os.makedirs(path.parent, exist_ok=True)
        progress = sys.stderr.isatty()
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), SHA256_PREFIX, progress)
    except Exception as error:  # urllib raises many kinds; each means that there is no file
        raise ValueError(
            f"the Inception weights are missing and could not be downloaded ({error}): "
            f"save {URL_INCEPTION_V3} as {path}, or pass inception_weights=PATH, or features=classifier for data with "
            f"classes, {NEITHER}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
