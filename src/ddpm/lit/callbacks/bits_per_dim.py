"""Bits/dim during training."""

from types import MappingProxyType

import lightning

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.metrics.dataset_bound import sampled
from ddpm.model.prediction import Clip, check_clip
from ddpm.parallel.share import Share


class BitsPerDim(Periodic):
    """Estimates the bound of Ho et al. 2020, Eq. 5, and its terms on the first test images, with the averaged weights.

    Evaluates a few times t for each image, chosen by importance. The images are always the same, and the noise of image
    i at time t depends only on (seed, i, t), so values can be compared across steps and runs.

    Args:
        every_n_steps: steps between two evaluations; None for the end only.
        n_images: number of test images, of all processes together; None for all.
        evaluations: network evaluations per image, at least 3.
        batch_size: images at a time on one process.
        clip: clip x^_0 to [-1, 1] (see `Prediction`); also the default of evaluate.py.
        seed: of the noise.
    """

    labels = MappingProxyType(
        {
            "bits_per_dim": "bits/dim",
            "standard_error": "  standard error over images",
            "standard_error_times": "  standard error due to the times",
            "prior": "  prior L_T",
            "rate": "  rate L_1 + ... + L_T",
            "distortion": "  distortion L_0",
            "rmse": "  RMSE of the reconstruction (0..255)",
            "bits_per_dim_n": "  test images",
        }
    )

    def __init__(
        self,
        every_n_steps: int | None,
        n_images: int | None,
        evaluations: int,
        batch_size: int,
        clip: Clip,
        seed: int,
    ) -> None:
        super().__init__(every_n_steps)
        if (n_images is not None and n_images < 1) or batch_size < 1 or evaluations < 3:
            raise ValueError(
                f"callbacks.bits_per_dim needs n_images and batch_size of at least 1 and evaluations of at least 3, "
                f"got {n_images}, {batch_size} and {evaluations}"
            )
        check_clip("callbacks.bits_per_dim.clip", clip)
        self.n_images = n_images
        self.evaluations = evaluations
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
        bound = sampled(
            module.averaged,
            images,
            n,
            self.seed,
            self.batch_size,
            self.evaluations,
            self.clip,
            Share(trainer.global_rank, trainer.world_size),
            trainer.is_global_zero,
        )
        found = {name: value for name, value in bound.summary().items() if value is not None}
        self.record(trainer, module, found | {"bits_per_dim_n": n})
