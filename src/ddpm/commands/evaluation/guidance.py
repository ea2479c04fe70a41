"""FID and accuracy against the scale of guidance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm.commands import plots
from ddpm.commands.evaluation.quality import Judge
from ddpm.commands.subject import Subject
from ddpm.model.conditional import Classes, Guidance
from ddpm.support.files import write_csv

CURVES = ("fid", "fid_class_mean", "accuracy")


def prepare(subject: Subject) -> Callable[[Path], dict[str, Any]]:
    """Check the options; what is returned samples with each scale, and draws the curves."""
    scales = list(subject.cfg.guidance_scales)
    if not subject.model.classes:
        raise ValueError(
            f"metrics=[guidance] needs a conditional model, and that of {subject.cfg.ckpt} is unconditional; train one "
            f"with conditioning=class"
        )
    if not scales:
        raise ValueError("guidance_scales must be numbers, such as [0,1,2], got none")
    judge = Judge(subject, ["fid"])
    interval = subject.cfg.guidance_interval

    def run(folder: Path) -> dict[str, Any]:
        rows: list[dict[str, float]] = []
        for scale in scales:
            classes = Classes(judge.labels, Guidance(scale, interval))
            scores = judge.scores(judge.draw(classes, f"sampling, guidance {scale:g}"))
            rows.append({"guidance": scale} | {name: scores[name] for name in CURVES if name in scores})
        if subject.leads:
            write_csv(folder / "guidance.csv", rows)
            plots.save(plots.guidance(rows), folder / "guidance.png")
        cautions = {name: scores[name] for name in ("warnings", "unreliable")}  # the same for every scale
        interval_used = None if interval is None else list(interval)
        return {"table": rows, "guidance_interval": interval_used} | cautions | judge.protocol()

    return run
