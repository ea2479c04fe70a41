"""What sample.py does besides a grid of samples."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import load
from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.commands.sample import sample
from ddpm.commands.tasks import interpolate as interpolate_task
from ddpm.data.digits import Digits
from ddpm.data.scaling import to_unit
from ddpm.sampler.ddim import DDIM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, "seed=2")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def do(compose, checkpoint, tmp_path_factory):
    """(*overrides) -> the folder that sample.py leaves."""

    def done(*overrides):
        parent = tmp_path_factory.mktemp("out")
        return sample(compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{parent}'", *overrides))

    return done


def files(folder):
    """What a task leaves, beside what says how it was made."""
    assert json.loads((folder / "sample.json").read_text())["sha256"]
    for path in folder.glob("*.png"):
        assert json.loads(Image.open(path).text["ddpm"])["sampler"]
    return {path.name for path in folder.iterdir()} - {"sample.json"}


def is_picture(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 60 and pixels.std() > 5


def test_progressive_writes_a_strip_and_a_moving_picture(do):
    folder = do("task=progressive", "n=3", "points=5")
    assert files(folder) == {"strip.png", "progressive.gif"}
    assert is_picture(folder / "strip.png")
    with Image.open(folder / "progressive.gif") as moving:
        assert moving.n_frames == 20
        first = np.asarray(moving.convert("L"), dtype=float)
        moving.seek(19)
        assert np.abs(np.asarray(moving.convert("L"), dtype=float) - first).mean() > 5


@pytest.fixture
def drawn(monkeypatch):
    """What the task draws: the tensors that its picture is made of."""
    seen = []
    tiles = interpolate_task.plots.tiles

    def spy(images, *labels):
        seen.append(images)
        return tiles(images, *labels)

    monkeypatch.setattr(interpolate_task.plots, "tiles", spy)
    return seen


def test_interpolation_has_the_real_images_at_its_ends_and_their_decodings_beside_them(do, drawn):
    folder = do("task=interpolate", "images=[3,5,8,9]", "depth=1", "points=4", "sampler=ddim")
    assert files(folder) == {"interpolation.png"}
    (tiles,) = drawn
    assert tiles.shape == (2, 6, 1, 8, 8)
    real = Digits().load("test").pixels([3, 5, 8, 9]).float() * 255 / 16
    assert torch.equal(tiles[0, 0].float(), real[0].round())
    assert torch.equal(tiles[1, 5].float(), real[3].round())
    # Hardly any noise: the points go evenly from one image to the other.
    expected = torch.lerp(real[0], real[1], torch.tensor([0, 1 / 3, 2 / 3, 1]).view(4, 1, 1, 1))
    assert (tiles[0, 1:5] - expected).abs().mean() < 12
    do("task=interpolate", "images=[3,5]", "depth=20", "points=4", "sampler=ddim")
    assert (drawn[1][0, 1:5] - expected).abs().mean() > 20


def test_slerp_begins_and_ends_with_the_samples_themselves(do, drawn, checkpoint):
    folder = do("task=slerp", "images=[0,4]", "points=5", "sampler=ddim", "sampler.steps=10")
    assert files(folder) == {"slerp.png"}
    noise = IndexedNoise(2, Stream.SAMPLES, [0, 4], (1, 8, 8))
    ends = DDIM(10).sample(load(checkpoint), noise)
    levels = ((ends.clamp(-1, 1) + 1) * 8).round() * 255 / 16
    assert (drawn[0][0, [0, -1]] - levels).abs().max() <= 17


def test_encoding_and_decoding_gives_the_image_back(do):
    folder = do("task=encode", "images=[1,2,7]")
    assert files(folder) == {"encode.png", "encode.json", "latents.npz"}
    found = json.loads((folder / "encode.json").read_text())
    assert found["rmse"] < 0.5
    latents = np.load(folder / "latents.npz")["latents"]
    assert latents.shape == (3, 1, 8, 8)
    x_0 = to_unit(Digits().load("test").pixels([1, 2, 7]), 17).numpy()
    assert np.abs(latents - x_0).mean() > 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=paint"], "task must be one of grid, progressive, interpolate, slerp, encode, inverse, got 'paint'"),
        (["task=interpolate", "images=[1]"], "images must be pairs"),
        (["task=interpolate", "images=[0,360]"], "images must be in 0..359, of the test split"),
        (["task=interpolate", "depth=21"], "depth, the time to which images are diffused, must be in 1..20, got 21"),
        (["task=interpolate", "points=1"], "points must be at least 2, got 1"),
        (["task=progressive", "points=1"], "points must be at least 2, got 1"),
        (["task=slerp", "sampler=ancestral"], "task=slerp needs a deterministic sampler"),
        (["task=slerp", "sampler=ddim", "sampler.eta=0.5"], "task=slerp needs a deterministic sampler"),
        (["task=encode", "images=[-1]"], "images must be in 0..359"),
        (["task=encode", "split=all"], 'split must be "train" or "test"'),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(do, compose, checkpoint, tmp_path, overrides, message):
    cfg = compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", *overrides)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        sample(cfg)
    assert not list(tmp_path.iterdir())
