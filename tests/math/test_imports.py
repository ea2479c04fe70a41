"""Imports go one way: each room may use those that its line names, which come before it."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ddpm

ROOT = Path(ddpm.__file__).parent
ROOMS = {
    "support": "",
    "chain": "",
    "schedule": "",
    "parameterization": "chain",
    "variance": "chain",
    "time_sampler": "",
    "conditioning": "",
    "kernels": "support",
    "network": "chain",
    "model": "chain parameterization variance",
    "likelihood": "support chain model",
    "loss": "chain model likelihood",
    "sampler": "chain model",
    "generation": "support chain model sampler",
    "data": "support",
    "operator": "data",
    "solver": "chain parameterization model sampler operator",
    "parallel": "support",
    "reporting": "support",
    "metrics": "support chain kernels model likelihood sampler generation data parallel",
    "setup": "support chain variance kernels network model loss sampler data parallel",
    "lit": "support chain time_sampler conditioning model loss sampler generation data parallel metrics setup",
    "commands": "support chain kernels model likelihood sampler generation data operator solver parallel reporting "
    "metrics setup lit",
}
EDGE = {"setup", "lit", "commands"}
"""The rooms that may import Lightning, Hydra and OmegaConf."""


def modules(rooms):
    """Every module of these rooms: its dotted name below ddpm, and its file."""
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if name.split(".")[0] in rooms:
            yield name, file


def imported(file):
    """The dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_every_folder_is_a_room_and_every_room_uses_only_rooms_before_it():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("conf", "__pycache__")}
    assert folders == {*ROOMS}
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
    before = set()
    for room, used in ROOMS.items():
        assert {*used.split()} <= before, room
        before.add(room)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_line_names_and_nothing_else(room):
    found = {name.split(".")[1] for _, file in modules({room}) for name in imported(file) if name.startswith("ddpm.")}
    assert found - {room, "__version__"} == {*ROOMS[room].split()}


def test_the_mathematics_names_neither_lightning_nor_hydra_nor_omegaconf():
    frameworks = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
    found = {name: {*imported(file)} for name, file in modules({*ROOMS} - EDGE)}
    slurm = "lightning.fabric.plugins.environments.slurm.SLURMEnvironment"  # where Slurm started the process
    found["parallel.rendezvous"].remove(slurm)
    assert {name for name, used in found.items() if {each.split(".")[0] for each in used} & frameworks} == set()


@pytest.mark.slow
def test_importing_the_mathematics_loads_neither_lightning_nor_hydra_nor_omegaconf():
    below = [f"ddpm.{name}" for name, _ in modules({*ROOMS} - EDGE) if not name.endswith("__init__")]
    assert {"ddpm.chain.process", "ddpm.likelihood.elbo", "ddpm.schedule.linear", "ddpm.network.unet"} <= {*below}
    code = (
        "import importlib, sys\n"
        f"for name in {below!r}: importlib.import_module(name)\n"
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        "found = roots & {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf'}\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_word_names_one_file():
    names = Counter(name.split(".")[-1] for name, _ in modules(ROOMS))
    assert {name for name, count in names.items() if count > 1} == {"__init__", "base"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate", "sample"])
def test_help_is_shown_without_importing_torch(command):
    code = (
        f"import sys; sys.argv[1:] = ['--help']; from ddpm.commands import cli; cli.run({command!r})\n"
        "found = {'torch', 'lightning', 'numpy', 'matplotlib'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "== Options (group=option) ==" in done.stdout
