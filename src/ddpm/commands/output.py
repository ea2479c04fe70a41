"""The new folder that evaluate.py and sample.py write their results into."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm.parallel import processes
from ddpm.setup.shell import shown
from ddpm.support import files


@contextmanager
def new_folder(parent: Path, name: str, leads: bool = True, again: str = "repeat the command") -> Iterator[Path]:
    """A folder that did not exist before, for what a job writes; at the end it is said what that is.

    An error or an interrupt leaves what is finished, and no empty folder.

    Args:
        parent: where it is made.
        name: its first word; the time of day follows, and a number if need be.
        leads: whether this process makes it; the others are told where it is.
        again: what to do for the rest after an interrupt.
    Raises:
        KeyboardInterrupt: with what is kept, and how to go on.
    """
    made = [each for each in (parent, *parent.parents) if not each.exists()] if leads else []
    folder = Path(processes.agreed(str(_new_folder(parent, name)) if leads else None))
    try:
        yield folder
    except BaseException as error:
        if not leads:
            raise
        with suppress(OSError):  # what is not empty stays
            for each in (folder, *made):
                each.rmdir()
        kept = f"kept: {_listed(folder)}" if folder.exists() else "nothing was written"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{kept}; to go on: {again if folder.exists() else 'repeat the command'}") from None
        if folder.exists():
            print(kept)
        raise
    if leads:
        print(f"written: {_listed(folder)}")


def _listed(folder: Path) -> str:
    """The names of what is in a folder, and where that is."""
    return f"{', '.join(sorted(path.name for path in folder.iterdir()))} in {shown(folder)}"


def _new_folder(parent: Path, name: str) -> Path:
    try:
        return files.new_folder(parent / f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    except OSError as error:
        raise ValueError(f"cannot write to {parent}: {error.strerror}; choose another output_dir") from error
