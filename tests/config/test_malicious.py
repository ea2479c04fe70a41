"""Checkpoints that try to run something or to write somewhere: each is refused in one line, and nothing happens."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import waiting

ROOT = Path(__file__).parents[2]


def put(content, path, value):
    """Set an entry of nested dicts, by its dotted path."""
    *parents, last = path.split(".")
    for parent in parents:
        content = content[parent]
    content[last] = value


CALL = {"_target_": "os.mkdir", "path": "RAN"}
CODE = "a payload"
ATTACKS = {
    "pickle at the top": ("extra", CODE),
    "pickle among the weights": ("state_dict.diffusion", CODE),
    "pickle in the optimizer": ("optimizer_states", [CODE]),
    "pickle in the loops": ("loops.fit_loop", CODE),
    "pickle in the callbacks": ("callbacks.mine", CODE),
    "pickle in the configuration": ("ddpm_config.seed", CODE),
    "os.system": ("ddpm_config.schedule", {"_target_": "os.system", "command": "mkdir RAN"}),
    "builtins.exec": ("ddpm_config.loss", {"_target_": "builtins.exec", "_args_": ["import os; os.mkdir('RAN')"]}),
    "subprocess": ("ddpm_config.sampler", {"_target_": "subprocess.run", "args": ["mkdir", "RAN"]}),
    "nested": ("ddpm_config.network.dropout", CALL),
    "nested in a list": ("ddpm_config.network.multipliers", [1, [CALL]]),
    "behind an option's module": ("ddpm_config.data._target_", "ddpm.data.fashion_mnist.gzip.open"),
    "_partial_": ("ddpm_config.schedule._partial_", True),
    "_args_": ("ddpm_config.schedule._args_", ["RAN"]),
    "an interpolation": ("ddpm_config.data.root", "${oc.env:HOME}"),
    "Lightning's _instantiator": ("hyper_parameters", {"_instantiator": "os.mkdir", "path": "RAN"}),
    "Lightning's _class_path": ("ddpm_config.variance._class_path", "os.mkdir"),
    "an output folder": ("ddpm_config.output_dir", "RAN"),
    "callbacks": ("ddpm_config.callbacks", {"mine": CALL}),
    "a feature network": ("ddpm_config.evaluation.features", "../../RAN"),
    "a folder to download to": (
        "ddpm_config.data",
        {"_target_": "ddpm.data.cifar10.CIFAR10", "root": "RAN", "flip": False},
    ),
    "a shape": ("ddpm_config.image.shape", {"_target_": "os.mkdir"}),
}
WAYS = {
    "evaluate": ("metrics=[fid,nll]", "n_samples=4"),
    "sample": ("task=encode", "images=[0]"),
    "train": ("trainer.max_steps=9",),
}


@pytest.fixture
def attack(trained, payload, tmp_path):
    """(name) -> a checkpoint, and the path that shows that it has done something."""

    def written(name):
        ran = tmp_path / "ran"

        def armed(value):
            if value == CODE:
                return payload(ran)
            if isinstance(value, dict):
                return {key: armed(each) for key, each in value.items()}
            if isinstance(value, list):
                return [armed(each) for each in value]
            return value.replace("RAN", str(ran)) if isinstance(value, str) else value

        path, value = ATTACKS[name]
        content = torch.load(trained, weights_only=True)
        put(content, path, armed(value))
        torch.save(content, tmp_path / "evil")
        return tmp_path / "evil", ran

    return written


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        pytest.param(name, entry, marks=pytest.mark.slow if entry != "evaluate" else ())
        for name in ATTACKS
        for entry in WAYS
        if entry == "evaluate" or (entry == "train" and name != "a feature network") or name == "os.system"
    ],
)
def test_an_attack_is_refused_in_one_line_and_does_nothing(attack, message, tmp_path, monkeypatch, entry, name):
    ckpt, ran = attack(name)
    monkeypatch.setattr(os, "system", lambda command: ran.mkdir())
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if "run" not in path.parts}
    line = message(entry, f"ckpt={json.dumps(str(ckpt))}", *WAYS[entry])
    assert len(line) < 700
    assert not ran.exists()
    assert {path for path in tmp_path.rglob("*") if "run" not in path.parts} == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ddpm_config.image.shape", ["1", "8", "8"]),
        ("ddpm_config.image.shape", 8),
        ("ddpm_config.image", [1, 8, 8]),
        ("ddpm_config.image.levels", -17),
        ("ddpm_config.seed", "0"),
        ("ddpm_config.evaluation", None),
        ("state_dict", [1]),
    ],
)
def test_entries_of_the_wrong_kind_are_one_line(trained, message, tmp_path, path, value):
    content = torch.load(trained, weights_only=True)
    put(content, path, value)
    torch.save(content, tmp_path / "odd")
    line = message("evaluate", f"ckpt={json.dumps(str(tmp_path / 'odd'))}", *WAYS["evaluate"])
    assert "is not a complete ddpm checkpoint" in line


@pytest.mark.slow
def test_as_typed_an_attack_is_one_line_and_a_failure(attack, tmp_path):
    ckpt, ran = attack("nested")
    typed = [sys.executable, str(ROOT / "evaluate.py"), f"ckpt={ckpt}"]
    done = waiting.run(typed, env=os.environ | {"HYDRA_FULL_ERROR": "0"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: the checkpoint names network.dropout._target_ = 'os.mkdir'")
    assert len(done.stderr.splitlines()) == 1
    assert not ran.exists()
