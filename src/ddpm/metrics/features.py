"""What metrics look at, of samples and of real images, shared out over the processes."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.images import Images
from ddpm.data.scaling import as_uint8, to_pixels
from ddpm.generation.draw import draw
from ddpm.model.conditional import Classes
from ddpm.model.diffusion import Diffusion
from ddpm.parallel.gathered import Gathered
from ddpm.parallel.share import ALONE, Share
from ddpm.sampler.base import Sampler


class Extractor(Protocol):
    """What metrics look at in images: a feature network, or the pixels.

    Attributes:
        name: for progress bars.
        values: names of what a call returns.
    """

    name: str
    values: tuple[str, ...]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """A tensor (B, ...) for each of `values`, of images: uint8 in 0..255, shape (B, C, H, W)."""
        ...


class Pixels:
    """The images themselves."""

    name = "pixels"
    values: tuple[str, ...] = ("pixels",)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images}


class Together:
    """What several extractors return."""

    def __init__(self, extractors: Sequence[Extractor]) -> None:
        self.extractors = extractors
        self.name = ", ".join(each.name for each in extractors)
        self.values = tuple(value for each in extractors for value in each.values)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {name: value for each in self.extractors for name, value in each(images).items()}


class Mirrored:
    """What an extractor returns of the images mirrored left to right."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.name, self.values = f"{extractor.name}, mirrored", extractor.values

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return self.extractor(images.flip(-1))


def sample_features(
    diffusion: Diffusion,
    sampler: Sampler,
    extractor: Extractor,
    shape: tuple[int, int, int],
    n: int,
    seed: int,
    batch_size: int,
    share: Share = ALONE,
    on_step: Callable[[], None] = lambda: None,
    on_batch: Callable[[Tensor, Tensor], None] = lambda pixels, index: None,
    classes: Classes | None = None,
) -> dict[str, Tensor]:
    """What metrics look at of samples 0..n-1, gathered from all processes.

    Args:
        extractor: what to gather.
        on_step: called after each step of the sampler.
        on_batch: called with the uint8 images (B, C, H, W) in 0..255 and indices of each of this process's batches.
        others: as in `draw`.
    """
    gathered = Gathered(extractor.values).to(diffusion.process.times.device)
    for x, index in draw(diffusion, sampler, shape, share.of(n), seed, batch_size, on_step, classes):
        images = as_uint8(to_pixels(x, diffusion.levels), diffusion.levels)
        gathered.update(extractor(images), index)
        on_batch(images, index)
    return gathered.compute()


def real_features(
    images: Images,
    extractor: Extractor,
    levels: int,
    n: int | None = None,
    share: Share = ALONE,
    device: torch.device | str = "cpu",
    progress: bool = False,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """What metrics look at of the first n images of a split (None: of all), gathered from all processes."""
    mine = torch.tensor(share.of(len(images) if n is None else min(n, len(images))))
    gathered = Gathered(extractor.values).to(device)
    for index in tqdm(torch.split(mine, batch_size), desc=extractor.name, leave=False, disable=not progress):
        gathered.update(extractor(as_uint8(images.pixels(index), levels).to(device)), index)
    return gathered.compute()
