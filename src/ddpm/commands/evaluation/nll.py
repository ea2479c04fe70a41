"""The bound of Ho et al. 2020, Eq. 5, as bits/dim."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm.chain.gaussian import bits_per_dim
from ddpm.commands import plots
from ddpm.commands.evaluation.base import Evaluation
from ddpm.commands.subject import Subject
from ddpm.likelihood.elbo import Bound, CodeLength
from ddpm.metrics import dataset_bound
from ddpm.metrics.base import Row
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, check_clip
from ddpm.support.files import write_npz

ESTIMATORS = ("sampled", "full")


def chain(subject: Subject) -> Diffusion:
    """The model on the requested chain."""
    steps = subject.cfg.nll.steps
    if steps is not None and not 1 <= steps <= subject.model.T:
        raise ValueError(f"nll.steps must be in 1..{subject.model.T}, or null for the trained chain, got {steps}")
    return subject.model if steps is None else subject.model.respace(steps)


def clip(subject: Subject) -> Clip:
    """Whether and how to clip x^_0: as requested, or as for the bits/dim of the training run."""
    asked = subject.cfg.nll.clip
    chosen = subject.config["evaluation"].get("clip", False) if asked is None else asked
    check_clip("nll.clip", chosen)
    return chosen


@functools.lru_cache(maxsize=1)
def full_bound(subject: Subject, n: int) -> Bound:
    """Every term for the first n images, computed once if two metrics need them."""
    cfg, share = subject.cfg, subject.share
    return dataset_bound.full(
        chain(subject), subject.split, n, subject.seed, cfg.batch_size, clip(subject), share, progress=subject.leads
    )


def choices(subject: Subject, model: Diffusion) -> dict[str, Any]:
    """What numbers from the bound depend on."""
    return {
        "unit": "bits/dim",
        "split": subject.cfg.split,
        "levels": model.levels,
        "given": subject.given,
        "T": model.T,
        "variance": subject.config["variance"]["_target_"].rsplit(".", 2)[-2],
        "x_0_clipped": clip(subject),
        "dtype": "float32",
    }


class NLL(Evaluation):
    """Computes the bound, draws its terms, and writes them to an .npz file."""

    rows = (
        Row("bits_per_dim", "bits/dim", "standard_error"),
        Row("standard_error_times", "  error due to the times"),
        Row("prior", "  prior L_T"),
        Row("rate", "  rate L_1 + ... + L_T"),
        Row("distortion", "  distortion L_0"),
    )

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        options = subject.cfg.nll
        if options.estimator not in ESTIMATORS:
            raise ValueError(f"nll.estimator must be {' or '.join(ESTIMATORS)}, got {options.estimator!r}")
        if options.estimator == "sampled" and options.evaluations < 3:
            raise ValueError(f"nll.evaluations must be at least 3 per image, got {options.evaluations}; 10 is typical")
        model = chain(subject)
        n = subject.count(options.n_images)
        clip(subject)

        def run(folder: Path) -> dict[str, Any]:
            length: CodeLength
            if options.estimator == "full":
                length = full_bound(subject, n)
            else:
                length = dataset_bound.sampled(
                    model,
                    subject.split,
                    n,
                    subject.seed,
                    subject.cfg.batch_size,
                    options.evaluations,
                    clip(subject),
                    subject.share,
                    progress=subject.leads,
                )
            if subject.leads:
                write_npz(folder / "terms.npz", length.arrays())
                times, terms = length.by_time()
                plots.save(plots.terms(times, bits_per_dim(terms, length.dims)), folder / "terms.png")
            found = length.summary()
            evaluations = model.T if options.estimator == "full" else min(options.evaluations, model.T)
            return {
                **found,
                "n": n,
                "estimator": options.estimator,
                "evaluations": evaluations,
                **choices(subject, model),
                "division": division(found),
            }

        return run

    def show(self, found: dict[str, Any], console: Console) -> None:
        print(found["division"])


def division(found: dict[str, Any]) -> str:
    """Where the bits go, in a sentence."""
    total, rate, distortion = (found[name] for name in ("bits_per_dim", "rate", "distortion"))
    return (
        f"Of {total:.2f} bits/dim, {rate:.2f} ({rate / total:.0%}) are rate, which describes the images up to an RMSE "
        f"of {found['rmse']:.2f} on a scale of 0..255, and {distortion:.2f} ({distortion / total:.0%}) are distortion, "
        f"which makes them exact."
    )
