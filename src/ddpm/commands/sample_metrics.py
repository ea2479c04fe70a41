"""Metrics of samples, such as FID: a part of evaluate.py's result."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.commands.evaluation.base import Evaluation
from ddpm.commands.subject import Subject
from ddpm.metrics.base import Metric
from ddpm.metrics.judge import Judge
from ddpm.model.conditional import Classes
from ddpm.support.pictures import saving

MOST_SAMPLES = 50_000
"""The protocol of Ho et al. 2020 asks for this many."""


class SampleMetrics(Evaluation):
    """Draws samples and computes all metrics of them.

    Args:
        metrics: by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        references = [*subject.cfg.reference]
        if sorted(references) not in (["train"], ["test", "train"]):
            raise ValueError(
                f"reference must be [train] or [train,test], got {references}; samples are always compared with the "
                f"training images"
            )
        judge = judge_of(subject, self.metrics, against_test="test" in references)
        classes = subject.classes(judge.labels)
        self.rows = judge.rows

        def run(folder: Path) -> dict[str, Any]:
            with saving(folder / "samples" if subject.cfg.save_samples else None) as save:
                samples = draw(subject, judge, classes, "sampling", save)
            found = judge.scores(samples) | judge.floor
            if subject.model.classes:
                interval = classes.guidance.interval
                found["guidance"] = subject.cfg.guidance
                found["guidance_interval"] = None if interval is None else [*interval]
            return found | protocol(subject, judge)

        return run

    def of(self, found: dict[str, Any]) -> str:
        return f"{found['features']} features" if found["features"] else "pixels"


def judge_of(subject: Subject, metrics: Mapping[str, Metric], n: int | None = None, **options: Any) -> Judge:
    """What scores a checkpoint's samples, with the options of evaluate.py.

    Args:
        n: number of samples; None for `cfg.n_samples`.
        options: of `Judge`.
    """
    cfg, config = subject.cfg, subject.config
    return Judge(
        metrics,
        subject.train,
        subject.test,
        len(subject.source.classes),
        subject.model.levels,
        n or cfg.n_samples or config["evaluation"]["n_samples"] or min(len(subject.train), MOST_SAMPLES),
        subject.share,
        subject.device,
        cfg.features or config["evaluation"]["features"],
        cfg.inception_weights,
        cfg.features_dtype,
        by_class=bool(subject.model.classes),
        **options,
    )


def draw(
    subject: Subject,
    judge: Judge,
    classes: Classes,
    label: str,
    on_batch: Callable[[Tensor, Tensor], None] = lambda pixels, index: None,
) -> dict[str, Tensor]:
    """What the metrics look at of a checkpoint's samples; arguments as in `Judge.draw`."""
    batch_size, sampler = subject.cfg.batch_size, subject.sampler
    return judge.draw(subject.sampled, sampler, subject.shape, subject.seed, batch_size, classes, label, on_batch)


def protocol(subject: Subject, judge: Judge) -> dict[str, Any]:
    """What defines the values, and how far to trust them."""
    network = judge.network
    return {
        "n": judge.n,
        "reference": "train",
        "reference_n": len(subject.train),
        **({"reference_test_n": len(subject.test)} if judge.against_test else {}),
        "features": network and network.name,
        "features_dim": network and network.dim,
        "features_sha256": network and network.digest,
        "features_accuracy": network and network.accuracy,
        "resize": network and network.resize,
        "quantisation": f"rounded to {subject.model.levels} grey levels, then to 0..255",
        "sampler": subject.sampler_config,
        "steps": subject.sampler.chain(subject.model).T,
        "dtype": network and network.dtype,
        "samples_dtype": subject.sampled_dtype,
        "unreliable": [*judge.unreliable],
        "warnings": judge.warnings,
    }
