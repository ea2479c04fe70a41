"""Bad input as typed: one line that says what to do, a failing exit status, and nothing that existed is changed."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from ddpm.data.image_folder import ImageFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def typed(monkeypatch, capfd):
    """(entry point, *arguments) -> what is printed to standard error when the command fails, as it must."""

    def run(entry, *arguments):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", [f"{entry}.py", *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / f"{entry}.py"), run_name="__main__")
        assert end.value.code not in (0, None)
        return end.value.code if isinstance(end.value.code, str) else capfd.readouterr().err

    return run


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def noise(size, mode="RGB"):
    depth = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, *depth), dtype=np.uint8), mode)


def images(folder, n=20, size=8):
    (folder / "images").mkdir()
    for i in range(n):
        noise(size).save(folder / "images" / f"{i:02d}.png")


def with_one(path, write):
    def made(folder):
        images(folder)
        write(folder / "images" / path)

    return made


def cut(path):
    noise(64).save(path)
    path.write_bytes(path.read_bytes()[:200])


FOLDERS = {
    "missing": (lambda folder: None, "there is no folder"),
    "empty": (lambda folder: (folder / "images").mkdir(), "there are no images in"),
    "one image": (lambda folder: images(folder, 1), "image in"),
    "truncated": (with_one("a.png", cut), "replace it with a readable copy or remove it"),
    "unreadable": (with_one("a.png", lambda path: path.write_bytes(b"no image")), "replace it with a readable copy"),
    "too small": (
        with_one("a.png", lambda path: noise(7).save(path)),
        "fewer than image_size=8; choose image_size <= 7",
    ),
    "too few": (lambda folder: images(folder, 12), "are too few for one batch of 16 images"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_bad_images(typed, bare, tmp_path, kind):
    make, expected = FOLDERS[kind]
    make(tmp_path)
    before = snapshot(tmp_path)
    line = typed(
        "train",
        *bare,
        *("data=image_folder", f"data.root={json.dumps(str(tmp_path / 'images'))}", "data.image_size=8"),
        f"hydra.run.dir={tmp_path}/run",
    )
    assert line.startswith("error: ")
    assert expected in line
    assert len(line.splitlines()) == 1
    assert {path: value for path, value in snapshot(tmp_path).items() if "run" not in path.parts} == before
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_images_of_every_kind_are_read_together(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for mode in ("L", "RGB", "RGBA", "CMYK"):
        noise(9, mode).save(folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    noise(9).quantize(16).save(folder / "palette.png")
    Image.fromarray(np.arange(81, dtype=np.uint16).reshape(9, 9) * 800).save(folder / "sixteen.png")
    noise(30).crop((0, 0, 30, 11)).save(folder / "wide.png")
    for channels in (1, 3):
        source = ImageFolder(str(folder), 8, channels=channels, test_fraction=0.4)
        found = torch.cat([source.load(split).pixels(range(len(source.load(split)))) for split in ("train", "test")])
        assert found.shape == (7, channels, 8, 8)
        assert len({image.numpy().tobytes() for image in found}) == 7


def test_data_of_another_size_than_the_checkpoint(message, trained, tmp_path):
    images(tmp_path)
    content = torch.load(trained, weights_only=True)
    content["ddpm_config"]["data"] = {
        "_target_": "ddpm.data.image_folder.ImageFolder",
        "root": str(tmp_path / "images"),
        "image_size": 6,
    }
    torch.save(content, tmp_path / "other")
    line = message("evaluate", f"ckpt='{tmp_path}/other'", "metrics=[nll]")
    assert "images are (3, 6, 6) with 256 grey levels, but the checkpoint's model expects (1, 8, 8) with 17" in line


@pytest.mark.parametrize("entry", ["train", "evaluate", "sample"])
def test_an_output_folder_that_cannot_be_made(typed, bare, trained, tmp_path, entry):
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    where = f"{tmp_path}/file/run"
    if entry == "train":
        line = typed("train", *bare, f"hydra.run.dir={where}")
    else:
        line = typed(
            entry, f"ckpt={trained}", f"output_dir={where}", *(["metrics=[nll]"] if entry == "evaluate" else [])
        )
    assert line.startswith("error: ")
    assert "choose another" in line
    assert len(line.splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("entry", "arguments", "expected"),
    [
        ("train", ["schedule=cosin"], "cosine"),
        ("train", ["loss=simple", "variance=learned"], "choose loss=hybrid or loss=vlb"),
        ("train", ["network.width=9"], "width must be even"),
        ("train", ["batchsize=3"], "batchsize"),
        ("train", ["schedule.T=many"], "schedule.T must be int, got 'many'"),
        pytest.param(
            *("train", ["trainer.devices=2", "trainer.num_nodes=2"], "start several nodes with torchrun or Slurm"),
            marks=pytest.mark.slow,  # starts two processes
        ),
        ("train", ["trainer.devices=0"], "devices=0"),
        ("evaluate", ["ckpt=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        ("evaluate", [], "missing: ckpt; give ckpt=..."),
        ("sample", ["ckpt=nowhere.ckpt", "n=0"], "n must be at least 1, got 0"),
        ("sample", ["ckpt=nowhere.ckpt", "devices=none"], "devices=none"),
    ],
)
def test_unknown_and_impossible_options(typed, tmp_path, monkeypatch, entry, arguments, expected):
    monkeypatch.chdir(tmp_path)
    line = typed(entry, *arguments)
    assert expected in line
    assert "Traceback" not in line
    assert all(path.name == ".lock" for path in snapshot(tmp_path))


def test_the_stack_trace_is_there_for_who_asks(typed, monkeypatch):
    def full(entry, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{entry}.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        GlobalHydra.instance().clear()
        runpy.run_path(str(ROOT / f"{entry}.py"), run_name="__main__")

    with pytest.raises(ValueError, match="there is no checkpoint"):
        full("evaluate", "ckpt=nowhere.ckpt")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
