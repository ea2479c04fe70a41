"""Features of samples and of real images, shared out over the processes."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.data.images import Images
from ddpm.data.scaling import as_uint8, to_pixels
from ddpm.generation.draw import draw
from ddpm.metrics.feature_network import FeatureNetwork, features_of
from ddpm.model.conditional import Classes
from ddpm.model.diffusion import Diffusion
from ddpm.parallel.gathered import Gathered
from ddpm.parallel.share import ALONE, Share
from ddpm.sampler.base import Sampler


def sample_features(
    diffusion: Diffusion,
    sampler: Sampler,
    network: FeatureNetwork,
    shape: tuple[int, int, int],
    n: int,
    seed: int,
    batch_size: int,
    share: Share = ALONE,
    on_step: Callable[[], None] = lambda: None,
    on_batch: Callable[[Tensor, Tensor], None] = lambda pixels, index: None,
    classes: Classes | None = None,
) -> dict[str, Tensor]:
    """Features of the samples 0..n-1 of all processes, on each of them.

    Args:
        on_step: called after each step of the sampler.
        on_batch: called with the uint8 images (B, C, H, W) in 0..255 and indices of each of this process's batches.
        others: as in `draw`.
    """
    metric = Gathered(("features", "logits")).to(diffusion.process.times.device)
    for x, index in draw(diffusion, sampler, shape, share.of(n), seed, batch_size, on_step, classes):
        images = as_uint8(to_pixels(x, diffusion.levels), diffusion.levels)
        metric.update(network(images), index)
        on_batch(images, index)
    return metric.compute()


def real_features(
    images: Images,
    network: FeatureNetwork,
    levels: int,
    n: int | None = None,
    share: Share = ALONE,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Tensor]:
    """Features of the first n images of a split (None: of all), gathered from all processes."""
    mine = torch.tensor(share.of(len(images) if n is None else min(n, len(images))))
    metric = Gathered(("features", "logits")).to(device)
    metric.update(features_of(network, images, levels, mine, device=device, progress=progress), mine)
    return metric.compute()
