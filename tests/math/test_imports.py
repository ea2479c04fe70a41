import subprocess
import sys
from pathlib import Path

import pytest

import ddpm

ROOT = Path(ddpm.__file__).parent
FOLDERS = {"lit", "metrics", "evaluation", "tasks"}
EDGE = FOLDERS | {
    "build",
    "checkpoint",
    "cli",
    "command",
    "config",
    "datamodule",
    "evaluate",
    "followers",
    "processes",
    "rendezvous",
    "run_folder",
    "sample",
    "subject",
}


def mathematics():
    """Every module below the edge, by its dotted name."""
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if file.name != "__init__.py" and not EDGE & set(parts):
            yield ".".join(("ddpm", *parts))


@pytest.mark.slow
def test_importing_the_mathematics_loads_neither_lightning_nor_hydra_nor_omegaconf():
    modules = list(mathematics())
    assert {"ddpm.process", "ddpm.elbo", "ddpm.schedule.linear", "ddpm.network.unet"} <= set(modules)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        "found = roots & {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf'}\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
