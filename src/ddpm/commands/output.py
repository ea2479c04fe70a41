"""The new folder for the results of evaluate.py and sample.py."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm.parallel import processes
from ddpm.setup.shell import shown
from ddpm.support import files


@contextmanager
def new_folder(parent: Path, name: str, leads: bool = True, again: str = "repeat the command") -> Iterator[Path]:
    """Create a new folder for the output of a job; at the end, print what was written.

    An error or an interrupt leaves the finished files, but no empty folder.

    Args:
        parent: where to create it.
        name: first part of its name; date and time follow, and a number if needed.
        leads: whether this process creates it; the others receive its path.
        again: what to do after an interrupt to get the rest.
    Raises:
        KeyboardInterrupt: with what is kept, and how to continue.
    """
    made = [each for each in (parent, *parent.parents) if not each.exists()] if leads else []
    folder = Path(processes.agreed(str(_new_folder(parent, name)) if leads else None))
    try:
        yield folder
    except BaseException as error:
        if not leads:
            raise
        with suppress(OSError):  # folders that are not empty stay
            for each in (folder, *made):
                each.rmdir()
        kept = f"kept: {_listed(folder)}" if folder.exists() else "nothing was written"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"{kept}; to continue: {again if folder.exists() else 'repeat the command'}"
            ) from None
        if folder.exists():
            print(kept)
        raise
    if leads:
        print(f"written: {_listed(folder)}")


def _listed(folder: Path) -> str:
    """The names of the files in a folder, and its path."""
    return f"{', '.join(sorted(path.name for path in folder.iterdir()))} in {shown(folder)}"


def _new_folder(parent: Path, name: str) -> Path:
    try:
        return files.new_folder(parent / f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    except OSError as error:
        raise ValueError(f"cannot write to {parent}: {error.strerror}; choose another output_dir") from error
