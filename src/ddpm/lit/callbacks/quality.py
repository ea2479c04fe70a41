"""FID and other metrics of samples during training."""

from collections.abc import Mapping

import lightning

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.metrics.base import Metric
from ddpm.metrics.judge import Judge
from ddpm.metrics.scores import rows
from ddpm.model.conditional import Classes
from ddpm.parallel.share import Share
from ddpm.sampler.base import Sampler


class Quality(Periodic):
    """Scores samples of the averaged weights, and compares them with the training images.

    FID is reported with its floor: the FID of as many real test images, the value of a perfect model.

    Args:
        every_n_steps: steps between two evaluations; None for the end only.
        n_samples: number of samples, of all processes together.
        batch_size: samples at a time on one process.
        features: `inception` or `classifier`.
        inception_weights: a file of Inception weights; None for torch-fidelity's cache or download.
        metrics: by name.
        sampler: how to sample.
        seed: of the noise.
    """

    def __init__(
        self,
        every_n_steps: int | None,
        n_samples: int,
        batch_size: int,
        features: str,
        inception_weights: str | None,
        metrics: Mapping[str, Metric],
        sampler: Sampler,
        seed: int,
    ) -> None:
        super().__init__(every_n_steps)
        if n_samples < 2 or batch_size < 1:
            raise ValueError(
                f"callbacks.quality needs n_samples of at least 2 and batch_size of at least 1, "
                f"got {n_samples}, {batch_size}"
            )
        if not metrics:
            raise ValueError(
                "metrics must name at least one metric, got none; or remove callbacks.quality: ~callbacks.quality"
            )
        others = [name for name, metric in metrics.items() if not isinstance(metric, Metric)]
        if others:
            raise ValueError(
                f"metrics={others} cannot be computed during training, only by evaluate.py; "
                f"callbacks.bits_per_dim logs bits/dim"
            )
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.features = features
        self.inception_weights = inception_weights
        self.metrics = dict(metrics)
        self.sampler = sampler
        self.seed = seed
        self.labels = {"samples_n": "samples"}
        for row in rows(self.metrics.values()):
            self.labels |= {row.value: row.label} | ({row.spread: f"  spread of {row.label}"} if row.spread else {})

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        """Prepare the feature network and the real images, so that what is missing shows before training."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.judge = Judge(
            self.metrics,
            data.train,
            data.test,
            len(data.source.classes),
            data.source.levels,
            self.n_samples,
            Share(trainer.global_rank, trainer.world_size),
            pl_module.device,
            self.features,
            self.inception_weights,
        )
        self.judge.reference  # noqa: B018 (computed here, not at the first evaluation)
        self.floor = {name: value for name, value in self.judge.floor.items() if name in self.labels}
        pl_module.unreliable = [*self.judge.unreliable]
        pl_module.warnings = self.judge.warnings
        for warning in self.judge.warnings:
            if trainer.is_global_zero:
                print(f"warning: {warning}")

    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        samples = self.judge.draw(
            module.averaged,
            self.sampler,
            trainer.datamodule.source.shape,  # type: ignore[attr-defined]
            self.seed,
            self.batch_size,
            Classes(self.judge.labels),
            ", ".join(self.metrics),
        )
        self.record(trainer, module, self.judge.scores(samples) | self.floor | {"samples_n": self.n_samples})
