"""Commands as a user types them."""

import os
import sys
from pathlib import Path

import waiting

ROOT = Path(__file__).parents[1]


def train(*arguments, launcher=(sys.executable,)):
    """The words of `python train.py ...`."""
    return [*launcher, str(ROOT / "train.py"), *arguments]


def environment(modules=None):
    """One thread for each process; modules of the folder `modules` are found first."""
    here = waiting.with_modules(modules) if modules else os.environ
    return here | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}


def run(words, **options):
    """What a command prints; it must succeed."""
    done = waiting.run(words, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
