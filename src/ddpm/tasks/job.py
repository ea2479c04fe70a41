"""What every task is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm import build, cli
from ddpm.data.images import Images
from ddpm.data.scaling import as_uint8, to_pixels, to_unit
from ddpm.data.source import check_split
from ddpm.diffusion import Diffusion
from ddpm.noise import IndexedNoise, Stream
from ddpm.sampler.base import Sampler


@dataclass(frozen=True)
class Job:
    """A checkpoint, how to sample from it, and the options.

    Attributes:
        cfg: a `SampleConfig`.
        config: of the training run, from the checkpoint.
        model: in evaluation mode, on its device.
        sampler: fits the model's chain.
        seed: of the noise.
    """

    cfg: Any
    config: dict[str, Any]
    model: Diffusion
    sampler: Sampler
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (C, H, W)."""
        channels, height, width = self.config["image"]["shape"]
        return channels, height, width

    def noise(self, indices: Sequence[int]) -> IndexedNoise:
        """Of the samples with these indices."""
        return IndexedNoise(self.seed, Stream.SAMPLES, indices, self.shape, self.model.process.times.device)

    def grey(self, x: Tensor) -> Tensor:
        """x about in [-1, 1] as uint8 in 0..255, on the CPU."""
        return as_uint8(to_pixels(x, self.model.levels), self.model.levels).cpu()

    def real(self, indices: Sequence[int]) -> Tensor:
        """Images of the split `cfg.split` in [-1, 1], on the model's device, shape (B, C, H, W)."""
        images = self._images()
        wrong = [i for i in indices if not 0 <= i < len(images)]
        if wrong:
            raise ValueError(f"images must be in 0..{len(images) - 1}, of the {self.cfg.split} split, got {wrong}")
        return to_unit(images.pixels(list(indices)), self.model.levels).to(self.model.process.times.device)

    def _images(self) -> Images:
        check_split(self.cfg.split)
        if self.cfg.data_root is not None:
            self.config["data"]["root"] = self.cfg.data_root
        return build.source(self.config).load(self.cfg.split)


def job(cfg: Any) -> Job:
    """A checkpoint with the sampler that is asked for, or that of its training run."""
    opened = cli.opened(cfg)
    sampler = build.sampler(opened.config["sampler"] if cfg.sampler is None else cfg.sampler, opened.model.T)
    return Job(cfg, opened.config, opened.model, sampler, opened.seed)


def weights(points: int) -> Tensor:
    """Evenly over [0, 1]."""
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    return torch.linspace(0, 1, points)


def pairs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours, two by two."""
    if len(indices) < 2 or len(indices) % 2:
        raise ValueError(f"images must be pairs, such as [0,1] or [0,1,2,3], got {list(indices)}")
    return list(zip(indices[::2], indices[1::2], strict=True))
