"""FID and accuracy against the guidance scale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ddpm.commands import plots
from ddpm.commands.evaluation.base import Evaluation, mark
from ddpm.commands.sample_metrics import draw, judge_of, protocol
from ddpm.commands.subject import Subject
from ddpm.metrics.fid import FID
from ddpm.model.conditional import Classes, Guidance
from ddpm.support.files import write_csv

CURVES = {"fid": "FID", "fid_class_mean": "FID of one class, mean", "accuracy": "accuracy"}


class GuidanceSweep(Evaluation):
    """Samples with each of `guidance_scales`, using the same noise, scores them, and draws the curves."""

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        scales = list(subject.cfg.guidance_scales)
        if not subject.model.classes:
            raise ValueError(
                f"metrics=[guidance] needs a conditional model, but {subject.cfg.ckpt} holds an unconditional one; "
                f"train one with conditioning=class"
            )
        if not scales:
            raise ValueError("guidance_scales must be numbers, such as [0,1,2], got none")
        judge = judge_of(subject, {"fid": FID()})
        interval = subject.cfg.guidance_interval

        def run(folder: Path) -> dict[str, Any]:
            rows: list[dict[str, float]] = []
            for scale in scales:
                classes = Classes(judge.labels, Guidance(scale, interval))
                samples = draw(subject, judge, classes, f"sampling, guidance {scale:g}")
                scores = judge.scores(samples)
                rows.append({"guidance": scale} | {name: scores[name] for name in CURVES if name in scores})
            if subject.leads:
                write_csv(folder / "guidance.csv", rows)
                plots.save(plots.guidance(rows), folder / "guidance.png")
            used = None if interval is None else list(interval)
            return {"table": rows, "guidance_interval": used} | protocol(subject, judge)

        return run

    def show(self, found: dict[str, Any], console: Console) -> None:
        title = f"Guidance, N = {found['n']}, {found['features']} features"
        table = Table(title=title, title_justify="left")
        columns = list(found["table"][0])
        for column in columns:
            table.add_column(CURVES.get(column, column) + mark(found, column), justify="right")
        for row in found["table"]:
            table.add_row(*(f"{row[column]:.4g}" for column in columns))
        console.print(table)
