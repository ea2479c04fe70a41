"""How near reconstructions are to the images that were measured."""

import os
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"


def psnr(found: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, shape (B,); images in [-1, 1], shape (B, C, H, W)."""
    return peak_signal_noise_ratio(found, true, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3))


def ssim(found: Tensor, true: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), shape (B,), at most 1; images as in `psnr`."""
    result = structural_similarity_index_measure(found, true, data_range=(-1.0, 1.0), reduction="none")
    assert isinstance(result, Tensor)
    return result.reshape(-1)


def check_lpips() -> None:
    """Raises ValueError unless the weights that LPIPS needs lie where torchvision looks for them."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"lpips=true needs torchvision's AlexNet weights, {os.path.relpath(path)}, which are not there; "
            f"put them there, or leave lpips out"
        )


def lpips(found: Tensor, true: Tensor) -> Tensor:
    """Learned perceptual similarity of each image (Zhang et al. 2018, AlexNet), shape (B,); images as in `psnr`."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    found, true = (images.clamp(-1, 1).expand(-1, 3, -1, -1) for images in (found, true))
    pairs = zip(found, true, strict=True)
    return torch.stack([learned_perceptual_image_patch_similarity(a[None], b[None], net_type="alex") for a, b in pairs])
