"""FID and its relatives of samples."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.commands.subject import Subject
from ddpm.metrics import by_class, fidelity
from ddpm.metrics.feature_network import DTYPES, shared_network
from ddpm.metrics.features import real_features, sample_features
from ddpm.model.conditional import Classes, in_proportion
from ddpm.support.bars import Steps
from ddpm.support.pictures import saving

MOST_SAMPLES = 50_000
"""The protocol of Ho et al. 2020 asks for this many."""


class Judge:
    """What samples of a subject are scored by.

    Args:
        subject: whose samples.
        metrics: of `fidelity.METRICS`.
    Raises:
        ValueError: the options do not fit the data, or a feature network is missing.
    """

    def __init__(self, subject: Subject, metrics: Sequence[str]) -> None:
        cfg, config, model = subject.cfg, subject.config, subject.model
        train, test = subject.train, subject.test
        self.subject = subject
        self.metrics = metrics
        features = cfg.features or config["evaluation"]["features"]
        classes = len(subject.source.classes)
        if cfg.features_dtype not in DTYPES:
            raise ValueError(f"features_dtype must be one of {', '.join(DTYPES)}, got {cfg.features_dtype!r}")
        self.network = shared_network(features, train, test, classes, model.levels, cfg.inception_weights)
        self.network.dtype = cfg.features_dtype
        if self.network.accuracy is not None and subject.leads:
            print(f"features=classifier: test accuracy {self.network.accuracy:.1%}, network {self.network.digest}")
        self.n = cfg.n_samples or config["evaluation"]["n_samples"] or min(len(train), MOST_SAMPLES)
        fidelity.check_sizes(metrics, self.n, len(train))
        if self.n < subject.share.world:
            raise ValueError(f"n_samples must be at least {subject.share.world}, one for each process, got {self.n}")
        self.labels = Classes(in_proportion(train.labels)).of(range(self.n))
        self.real = partial(
            real_features,
            network=self.network,
            levels=model.levels,
            share=subject.share,
            device=subject.device,
            progress=subject.leads,
        )

    @cached_property
    def reference(self) -> dict[str, Tensor] | None:
        """Features of the training images, where a metric needs them."""
        return None if set(self.metrics) == {"is"} else self.real(self.subject.train)

    def draw(
        self,
        classes: Classes,
        label: str,
        on_batch: Callable[[Tensor, Tensor], None] = lambda images, index: None,
    ) -> dict[str, Tensor]:
        """Features of n samples.

        Args:
            classes: of the samples of a conditional model.
            label: of the progress bar.
            on_batch: as in `sample_features`.
        """
        subject, cfg = self.subject, self.subject.cfg
        steps = subject.sampler.chain(subject.model).T
        batches = math.ceil(len(subject.share.of(self.n)) / cfg.batch_size)
        with Steps(label, batches * steps, subject.leads) as progress:
            return sample_features(
                subject.sampled,
                subject.sampler,
                self.network,
                subject.shape,
                self.n,
                subject.seed,
                cfg.batch_size,
                subject.share,
                on_step=progress,
                on_batch=on_batch,
                classes=classes,
            )

    def scores(self, samples: dict[str, Tensor]) -> dict[str, Any]:
        """The metrics of samples, those of their classes included if they were drawn by class."""
        scores = fidelity.fidelity(samples, self.reference, self.metrics)
        if self.subject.model.classes:
            if self.network.name == "classifier":
                scores["accuracy"] = by_class.accuracy(samples, self.labels)
            if self.reference is not None and "fid" in self.metrics:
                each = by_class.fid_by_class(samples, self.labels, self.reference, self.subject.train.labels)
                scores["fid_by_class"] = {str(label): value for label, value in each.items()}
                if each:
                    scores["fid_class_mean"] = sum(each.values()) / len(each)
                    labels = self.labels, self.subject.train.labels
                    n, n_reference = (min(int((of == label).sum()) for label in each) for of in labels)
                    self._caution(scores, "fid_class_mean", "within a class", n, n_reference)
        return scores

    def floor(self, scores: dict[str, Any]) -> None:
        """Add FID of as many real test images, that of a perfect model, to scores."""
        if self.reference is None or "fid" not in self.metrics:
            return
        floor = self.real(self.subject.test, n=self.n)
        n = len(floor["features"])
        scores |= {"fid_floor": fidelity.fidelity(floor, self.reference, ["fid"])["fid"], "fid_floor_n": n}
        self._caution(scores, "fid_floor", "the floor", n, len(self.subject.train))
        if n < self.n:
            scores["warnings"].append(f"the floor of FID is that of {n} test images, for {self.n} samples")

    def _caution(self, scores: dict[str, Any], name: str, where: str, n: int, n_reference: int) -> None:
        """Say of a FID in the scores if it is of too few images."""
        for reason in fidelity.unreliable(["fid"], n, n_reference, self.network.dim).values():
            scores["warnings"].append(f"{where}, {reason}")
            scores["unreliable"].append(name)

    def protocol(self) -> dict[str, Any]:
        """What defines the metrics."""
        subject, network = self.subject, self.network
        return {
            "n": self.n,
            "reference": "train",
            "reference_n": len(subject.train),
            "features": network.name,
            "features_dim": network.dim,
            "features_sha256": network.digest,
            "features_accuracy": network.accuracy,
            "resize": network.resize,
            "quantisation": f"rounded to {subject.model.levels} grey levels, then to 0..255",
            "sampler": subject.sampler_config,
            "steps": subject.sampler.chain(subject.model).T,
            "dtype": network.dtype,
            "samples_dtype": subject.sampled_dtype,
        }


def prepare(subject: Subject, metrics: Sequence[str]) -> Callable[[Path], dict[str, Any]]:
    """Find everything that is needed; what is returned draws samples and scores them."""
    judge = Judge(subject, metrics)
    classes = subject.classes(judge.labels)

    def run(folder: Path) -> dict[str, Any]:
        with saving(folder / "samples" if subject.cfg.save_samples else None) as save:
            samples = judge.draw(classes, "sampling", save)
        scores = judge.scores(samples)
        judge.floor(scores)
        if subject.model.classes:
            scores["guidance"] = subject.cfg.guidance
            scores["guidance_interval"] = None if classes.guidance.interval is None else [*classes.guidance.interval]
        return scores | judge.protocol()

    return run
