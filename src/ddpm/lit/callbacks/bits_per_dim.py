"""Bits/dim during training."""

import math

import lightning

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.metrics.nll import bound_of
from ddpm.progress import Steps
from ddpm.share import Share


class BitsPerDim(Periodic):
    """The bound of Eq. 5 on the first test images, with its terms, by the averaged weights.

    The noise of image i at time t is a function of (seed, i, t), so that values can be compared from step to step
    and from run to run.

    Args:
        every_n_steps: steps between two evaluations; None for the end alone.
        n_images: number of test images, of all processes together; None for all.
        batch_size: images at a time on one process.
        clip: clip x^_0 to [-1, 1].
        seed: of the noise.
    """

    def __init__(self, every_n_steps: int | None, n_images: int | None, batch_size: int, clip: bool, seed: int) -> None:
        super().__init__(every_n_steps)
        if (n_images is not None and n_images < 1) or batch_size < 1:
            raise ValueError(
                f"callbacks.bits_per_dim needs n_images and batch_size of at least 1, got {n_images}, {batch_size}"
            )
        self.n_images = n_images
        self.batch_size = batch_size
        self.clip = clip
        self.seed = seed

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        if self.n_images is not None and self.n_images < trainer.world_size:
            raise ValueError(
                f"callbacks.bits_per_dim.n_images must be at least {trainer.world_size}, one for each process"
            )

    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        images = trainer.datamodule.test  # type: ignore[attr-defined]
        n = min(len(images), self.n_images or len(images))
        share = Share(trainer.global_rank, trainer.world_size)
        total = math.ceil(len(share.of(n)) / self.batch_size) * module.diffusion.T
        with Steps("bits/dim", total, trainer.is_global_zero) as progress:
            bound = bound_of(module.averaged, images, n, self.seed, self.batch_size, self.clip, share, progress)
        self.record(trainer, module, bound.summary() | {"bits_per_dim_n": n})
