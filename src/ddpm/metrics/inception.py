"""torch-fidelity's InceptionV3, `inception-v3-compat`: the TensorFlow weights of 2015 that the papers use.

torch-fidelity reads weights with a full unpickler; here they are first read as plain tensors, and only those
tensors are handed on.
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
SHA256_PREFIX = "6726825d"  # also the end of the file name, the convention of torch.hub
TIMEOUT = 10  # seconds without an answer


def default_path() -> Path:
    """Where torch-fidelity itself looks for its weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME


def inception(
    weights: str | Path | None = None, layers: Sequence[str] = ("2048", "logits_unbiased")
) -> FeatureExtractorInceptionV3:
    """torch-fidelity's FeatureExtractorInceptionV3, on the CPU and in eval mode.

    Args:
        weights: a file in torch-fidelity's format; None takes torch-fidelity's own cache or its download.
        layers: names of the layers that a call returns, in this order.

    Raises:
        ValueError: if the weights cannot be had or read; it names the file to provide.
    """
    path = default_path() if weights is None else Path(weights).expanduser()
    if weights is None and not path.is_file():
        _download(path)
    remedy = (
        f"pass inception_weights=PATH with {URL_INCEPTION_V3}, or features=classifier for data with classes, {NEITHER}"
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
    """The same features and logits as the extractor's, faster: uint8 images (B, 3, H, W) -> (B, 2048), (B, 1008).

    Normalisations become part of the convolutions before them, the layout is channels-last, most averages of pixels are
    taken where there are fewest channels, and images are resized by two products of matrices.

    Args:
        extractor: in evaluation mode; its layers are taken over and changed.
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
    """A block of rectified convolutions in several branches, named branch..._1, _2, and so on, and branch_pool.

    The mean over neighbours follows the convolution of that branch: both are linear, and it leaves fewer channels.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        branches: dict[str, list[nn.Module]] = {}
        for name, layer in block.named_children():
            branches.setdefault(name.rsplit("_", 1)[0], []).append(layer)
        conv, relu = branches.popitem()[1][0].children()  # of branch_pool, the last
        branches["mean"] = [conv, nn.AvgPool2d(3, 1, 1, count_include_pad=False), relu]
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches.values())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _rectified(conv: nn.Conv2d) -> nn.Module:
    """max(conv(x), 0), by Winograd convolution if there is such for the kernel."""
    if not serves(conv):
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    conv.__class__ = Rectified
    return conv


@functools.lru_cache(8)
@torch.inference_mode(False)  # else the first use inside it would decide for all
def _interpolation(size: int, out: int, device: torch.device) -> Tensor:
    """The matrix (out, size) of bilinear interpolation as in TensorFlow 1: pixel i lies at i size / out."""
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
            f"put {URL_INCEPTION_V3} at {path}, or pass inception_weights=PATH, or features=classifier for data with "
            f"classes, {NEITHER}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
