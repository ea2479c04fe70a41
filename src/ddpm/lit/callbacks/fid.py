"""FID and its relatives during training."""

import math
from functools import partial

import lightning

from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.module import DDPM
from ddpm.metrics.feature_network import shared_network
from ddpm.metrics.features import real_features, sample_features
from ddpm.metrics.fidelity import METRICS, NAMES, fidelity, unreliable
from ddpm.model.conditional import Classes, in_proportion
from ddpm.parallel.share import Share
from ddpm.sampler.base import Sampler
from ddpm.support.bars import Steps


class FID(Periodic):
    """Scores samples of the averaged weights against the training images.

    Beside each FID stands its floor: that of as many real test images, the value of a perfect model.

    Args:
        every_n_steps: steps between two evaluations; None for the end alone.
        n_samples: number of samples, of all processes together.
        batch_size: samples at a time on one process.
        features: `inception` or `classifier`.
        inception_weights: a file of Inception weights; None for torch-fidelity's cache or download.
        metrics: of fid, is, kid, prc.
        sampler: how to sample.
        seed: of the noise.
    """

    records = frozenset({*NAMES.values(), "kid_subset_size", "fid_floor", "fid_n"})

    def __init__(
        self,
        every_n_steps: int | None,
        n_samples: int,
        batch_size: int,
        features: str,
        inception_weights: str | None,
        metrics: list[str],
        sampler: Sampler,
        seed: int,
    ) -> None:
        super().__init__(every_n_steps)
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"callbacks.fid.metrics must be of {', '.join(METRICS)}, got {', '.join(unknown)}")
        if n_samples < 2 or batch_size < 1:
            raise ValueError(
                f"callbacks.fid needs n_samples of at least 2 and batch_size of at least 1, "
                f"got {n_samples}, {batch_size}"
            )
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.features = features
        self.inception_weights = inception_weights
        self.metrics = metrics
        self.sampler = sampler
        self.seed = seed

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: DDPM) -> None:  # type: ignore[override]
        """Prepare the feature network and the real images, so that what is missing shows before training."""
        if self.n_samples < trainer.world_size:
            raise ValueError(f"callbacks.fid.n_samples must be at least {trainer.world_size}, one for each process")
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = data.source

        self.network = shared_network(
            self.features, data.train, data.test, len(source.classes), source.levels, self.inception_weights
        )
        if self.network.accuracy is not None and trainer.is_global_zero:
            print(f"features=classifier: test accuracy {self.network.accuracy:.1%}, network {self.network.digest}")

        share = Share(trainer.global_rank, trainer.world_size)
        real = partial(real_features, share=share, device=pl_module.device, progress=trainer.is_global_zero)
        self.reference = real(data.train, self.network, source.levels)
        floor = real(data.test, self.network, source.levels, self.n_samples)
        self.floor = fidelity(floor, self.reference, ["fid"])["fid"]
        if len(data.test) < self.n_samples and trainer.is_global_zero:
            print(f"the floor of FID is that of all {len(data.test)} test images, fewer than {self.n_samples} samples")
        of = len(data.train), self.network.dim, self.reference["logits"].shape[1]
        of_floor = unreliable(["fid"], len(floor["features"]), *of)
        pl_module.unreliable = unreliable(self.metrics, self.n_samples, *of)
        if of_floor:
            pl_module.unreliable["fid_floor"] = f"the floor, {of_floor['fid']}"
        for reason in dict.fromkeys(pl_module.unreliable.values()):
            if trainer.is_global_zero:
                print(f"warning: {reason}")

    def run(self, trainer: lightning.Trainer, module: DDPM) -> None:
        share = Share(trainer.global_rank, trainer.world_size)
        model = module.averaged
        batches = math.ceil(len(share.of(self.n_samples)) / self.batch_size)
        data = trainer.datamodule  # type: ignore[attr-defined]
        with Steps("FID", batches * self.sampler.chain(model).T, trainer.is_global_zero) as progress:
            samples = sample_features(
                model,
                self.sampler,
                self.network,
                data.source.shape,
                self.n_samples,
                self.seed,
                self.batch_size,
                share,
                progress,
                classes=Classes(in_proportion(data.train.labels)),
            )
        scores = fidelity(samples, self.reference, self.metrics)
        values = {name: value for name, value in scores.items() if name not in ("warnings", "unreliable")}
        self.record(trainer, module, values | {"fid_floor": self.floor, "fid_n": self.n_samples})
