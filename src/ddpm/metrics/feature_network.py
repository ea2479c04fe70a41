"""Images to features: one interface to the networks that FID and its relatives look through."""

from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from ddpm.data.images import Images
from ddpm.metrics.classifier import Classifier, train_classifier
from ddpm.metrics.inception import Folded, inception
from ddpm.metrics.weights import weights_digest
from ddpm.parallel import processes

# name here: (layer of the features, layer of the logits, rule of resizing)
LAYERS = {
    "inception": ("2048", "logits_unbiased", "299x299, bilinear as in TensorFlow 1"),
    "classifier": ("features", "logits", "none"),
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FeatureNetwork:
    """A feature network and what to state beside its numbers.

    FID, KID, precision and recall take the features, IS takes the logits. For Inception these are the layers
    2048 and logits_unbiased, torch-fidelity's defaults, but that its precision and recall default to vgg16.
    `calculate_metrics` gives the same numbers with feature_extractor="inception-v3-compat" and
    feature_layer_prc="2048".

    Args:
        name: `inception` or `classifier`.
        extractor: torch-fidelity's extractor, asked for the features' and the logits' layer, in this order.

    Attributes:
        digest: first 16 hex digits of the sha256 of the weights.
        dim: number of features.
        classes: number of logits.
        resize: how images are resized before the network.
        accuracy: the classifier's accuracy on test images, in 0..1; None for Inception.
        dtype: one of DTYPES, in what the network computes; what it returns is float32 either way.
    """

    values: tuple[str, ...] = ("features", "logits")

    def __init__(self, name: str, extractor: FeatureExtractorBase) -> None:
        if name not in LAYERS:
            raise ValueError(f"features must be one of {', '.join(LAYERS)}, got {name!r}")
        layers = list(LAYERS[name][:2])
        if list(extractor.features_list) != layers:
            raise ValueError(
                f"{name} must be built with the layers {layers}, got {list(extractor.features_list)}; "
                f"use feature_network"
            )
        self.name = name
        self.digest = weights_digest(extractor.state_dict())
        extractor.requires_grad_(False).eval()
        self.extractor = Folded(extractor) if name == "inception" else extractor
        last: torch.nn.Linear = extractor.fc if name == "inception" else extractor.network[-1]
        self.dim, self.classes = last.in_features, last.out_features
        self.resize = LAYERS[name][2]
        self.accuracy: float | None = getattr(extractor, "accuracy", None)
        self.dtype = "float32"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (B, dim) and logits (B, classes), float32, on the images' device; the network moves there.

        Args:
            images: uint8 in 0..255, shape (B, C, H, W), C = 1 (grey, repeated to RGB) or 3.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 of shape (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}; "
                f"convert with ddpm.data.scaling.as_uint8"
            )
        self.extractor.to(images.device).eval()
        half = DTYPES[self.dtype] == torch.bfloat16
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            features, logits = self.extractor(images.expand(-1, 3, -1, -1))
        return {"features": features.float().clone(), "logits": logits.float().clone()}  # ordinary tensors


def feature_network(
    features: str,
    images_train: Images | None = None,
    images_test: Images | None = None,
    classes: int | None = None,
    levels: int = 256,
    inception_weights: str | Path | None = None,
) -> FeatureNetwork:
    """The network called `features`: `inception`, or `classifier`, trained on the images if need be."""
    if features == "classifier":
        if images_train is None or images_test is None:
            raise ValueError("features=classifier needs training and test images; or use features=inception")
        path = train_classifier(images_train, images_test, classes, levels)
        return FeatureNetwork("classifier", Classifier("classifier", LAYERS["classifier"][:2], path))
    if features == "inception":
        return FeatureNetwork("inception", inception(inception_weights, LAYERS["inception"][:2]))
    raise ValueError(f"features must be one of {', '.join(LAYERS)}, got {features!r}")


def shared_network(
    features: str,
    images_train: Images,
    images_test: Images,
    classes: int,
    levels: int,
    inception_weights: str | Path | None,
    dtype: str = "float32",
) -> FeatureNetwork:
    """`feature_network` on every process: the first trains or fetches it, the others then find it.

    Args:
        dtype: of DTYPES.
        others: as in `feature_network`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"features_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    for turn in (True, False):
        if turn == (processes.share().rank == 0):
            network = feature_network(features, images_train, images_test, classes, levels, inception_weights)
        processes.agreed(None)
    network.dtype = dtype
    return network
