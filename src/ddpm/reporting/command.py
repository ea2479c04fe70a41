"""`python report.py runs/...`: read the runs in folders, and write the report of them."""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ddpm.reporting.cells import cells
from ddpm.reporting.page import page
from ddpm.reporting.runs import found
from ddpm.support.files import expanded, write_text
from ddpm.support.text import printable


def report(arguments: Sequence[str], program: str) -> None:
    """Write the report, once or with `--watch` again and again until an interrupt.

    Args:
        arguments: of the command line.
        program: what starts a training run on a command line.
    Raises:
        ValueError: there is nothing to read, or an option is wrong.
    """
    parser = argparse.ArgumentParser(
        "report",
        description="Writes one HTML file that compares runs: a table of results with errors over seeds, curves, "
        "samples and the options that differ. It needs no network.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a run, a sweep, or a folder that holds some")
    parser.add_argument("--out", metavar="FILE", help="the file to write; default: report.html in the first folder")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=30, metavar="SECONDS", help="write it again every 30 or so many seconds"
    )
    given = parser.parse_args(arguments)
    if given.watch is not None and not given.watch >= 1:
        raise ValueError(f"--watch must be at least 1 second, got {given.watch:g}")
    folders = [Path(expanded(folder)) for folder in given.folders]
    out = Path(expanded(given.out)) if given.out else folders[0] / "report.html"
    if out.is_dir():
        raise ValueError(f"--out={printable(out)} is a folder; give a file, such as {printable(out / 'report.html')}")
    said = write(folders, out, program, given.watch)
    print(said)
    while given.watch is not None:
        try:
            time.sleep(given.watch)
            now = write(folders, out, program, given.watch)
        except KeyboardInterrupt:
            write(folders, out, program, None)
            raise KeyboardInterrupt(f"{printable(out)} is the last report") from None
        if now != said:
            print(said := now)


def write(folders: list[Path], out: Path, program: str, refresh: float | None) -> str:
    """Write the report of the folders; returns what was read and where the file is."""
    runs, unread = found(folders)
    write_text(out, page(runs, unread, program, refresh))
    states = ", ".join(f"{n} {state}" for state, n in Counter(run.state for run in runs).most_common())
    line = f"report: {len(runs)} runs ({states}) in {len(cells(runs))} configurations" if runs else "report: no runs"
    line += f", {len(unread)} folders not readable" if unread else ""
    return f"{line} -> {printable(out)} ({out.stat().st_size / 1e6:.1f} MB)"
