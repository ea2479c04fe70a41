"""Scores that compare reconstructions with the true images.

Images in [-1, 1] become intensities (x + 1) / 2 in [0, 1], as the formulas of PSNR and SSIM expect; intensities in
0..255 would give the same values.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
LEAST_SIDE = {"SSIM": 6, "LPIPS": 31}
"""Minimum side in pixels: SSIM mirrors 5 at each side, AlexNet halves repeatedly."""


def psnr(found: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, shape (B,); infinite for a perfect reconstruction.

    Args:
        found: images in [-1, 1], float, shape (B, C, H, W); values outside are clamped.
        true: true images, as `found`.
    """
    found, true = _intensities(found), _intensities(true)
    return peak_signal_noise_ratio(found, true, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(found: Tensor, true: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), shape (B,), at most 1; images as in `psnr`.

    The mean over all pixels, including the borders, where images are mirrored. Computed in float64: variances are
    differences of means, and float32 is off by 0.001 where an image is flat.
    """
    found, true = _intensities(found).double(), _intensities(true).double()
    result = structural_similarity_index_measure(found, true, data_range=1.0, reduction="none")
    assert isinstance(result, Tensor)
    return result.reshape(-1)


def lpips(found: Tensor, true: Tensor) -> Tensor:
    """Learned perceptual similarity of each image (Zhang et al. 2018, AlexNet), shape (B,); images as in `psnr`."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    distance = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(found.device)  # takes intensities
    found, true = (_intensities(images).expand(-1, 3, -1, -1) for images in (found, true))
    return torch.stack([distance(a[None], b[None]) for a, b in zip(found, true, strict=True)])


def check(shape: Sequence[int], with_lpips: bool) -> None:
    """Raise ValueError if images of shape (C, H, W) are too small, or if the weights of LPIPS are missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if with_lpips and not path.is_file():
        raise ValueError(
            f"lpips=true needs torchvision's AlexNet weights, but {os.path.relpath(path)} does not exist; "
            f"put them there, or leave lpips out"
        )
    for name in ("SSIM", "LPIPS") if with_lpips else ("SSIM",):
        if min(shape[1:]) < LEAST_SIDE[name]:
            remedy = "leave lpips out" if name == "LPIPS" else "smaller images cannot be compared"
            raise ValueError(f"{name} needs at least {LEAST_SIDE[name]} pixels per side, got {shape[1:]}; {remedy}")


def _intensities(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [-1, 1], got {images.dtype}; scale grey levels with to_unit")
    return (images.clamp(-1, 1) + 1) / 2
