"""Grids of samples during training."""

from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from ddpm.data.scaling import as_uint8, to_pixels
from ddpm.generation.draw import draw
from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.model.conditional import Classes
from ddpm.parallel.gathered import Gathered
from ddpm.parallel.share import Share
from ddpm.sampler.base import Sampler
from ddpm.support.bars import Steps
from ddpm.support.pictures import grid, in_rows, save_png


class Samples(Periodic):
    """Writes `samples/step_0001000.png` into the run's folder, and sends it to TensorBoard and W&B.

    The samples come from the averaged weights and the same noise every time, so grids can be compared. The grids of a
    conditional model have one row per class.

    Args:
        every_n_steps: steps between two grids; None for the end only.
        n: number of samples.
        sampler: how to sample.
        seed: seed of the noise.
    """

    def __init__(self, every_n_steps: int | None, n: int, sampler: Sampler, seed: int) -> None:
        super().__init__(every_n_steps)
        if n < 1:
            raise ValueError(f"callbacks.samples.n must be at least 1, got {n}")
        self.n = n
        self.sampler = sampler
        self.seed = seed

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        if self.n < trainer.world_size:
            raise ValueError(f"callbacks.samples.n must be at least {trainer.world_size}, one for each process")

    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        source = trainer.datamodule.source  # type: ignore[attr-defined]
        model = module.averaged
        mine = Share(trainer.global_rank, trainer.world_size).of(self.n)
        gathered = Gathered(("x",)).to(module.device)
        classes = Classes(torch.arange(model.classes or 1))
        with Steps("samples", self.sampler.chain(model).T, trainer.is_global_zero) as progress:
            for x, index in draw(model, self.sampler, source.shape, mine, self.seed, self.n, progress, classes):
                gathered.update({"x": x}, index)
        x = gathered.compute()["x"]
        if not trainer.is_global_zero:
            return
        pixels = as_uint8(to_pixels(x, source.levels), source.levels).cpu()
        image = in_rows(pixels, model.classes) if model.classes else grid(pixels)
        path = save_png(image, Path(trainer.default_root_dir) / "samples" / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", image, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                # Without a step: an explicit one would drop the metrics that are logged at the same step.
                logger.log_image("samples", [str(path)])
