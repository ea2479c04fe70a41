"""A model that repeats its training images is said to do so, one that does not is not."""

import json

import pytest
import torch
from PIL import Image

from ddpm.commands.evaluate import evaluate
from ddpm.data.digits import Digits
from ddpm.data.images import InMemory
from ddpm.data.scaling import to_unit
from ddpm.metrics.classifier import RECIPE
from ddpm.setup import loading

pytestmark = pytest.mark.slow
N_TRAIN = 50
ALL = Digits().load("train")


def digits(indices):
    return InMemory(ALL.pixels(indices), ALL.labels[indices])


def repeating(model, images):
    """The model with the denoiser that minimises the loss on these images alone, E[x_0 | x_t] of their distribution."""
    x_0 = to_unit(images.pixels(range(len(images))), model.levels)

    def eps(x, t, label=None):
        at = model.process.coefficients(t)
        signal, sigma = (each.to(x.dtype).view(-1, 1, 1, 1) for each in (at.sqrt_alpha_bar, at.sigma))
        squares = torch.cdist(x.flatten(1), (signal[:1] * x_0).flatten(1)).square()
        mean = (-squares / (2 * sigma[:1].flatten() ** 2)).softmax(1) @ x_0.flatten(1)
        return (x - signal * mean.view_as(x)) / sigma

    return model.with_output(eps)


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """A tiny run on 50 images: the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", few(Digits.load))
        train(folder, "schedule.beta_T=0.6")  # 20 steps from images to noise
    return folder


def few(load):
    """A source's `load` with 50 training images."""
    return lambda self, split: digits(torch.arange(N_TRAIN)) if split == "train" else load(self, split)


@pytest.fixture
def memorisation(run, compose, tmp_path, monkeypatch):
    """(images that the model repeats or None, *overrides) -> the part of the result, and the folder."""

    def of(repeated, *overrides):
        monkeypatch.setitem(RECIPE, "examples", 6000)
        trained = loading.model
        with monkeypatch.context() as patch:
            patch.setattr(Digits, "load", few(Digits.load))
            if repeated is not None:
                patch.setattr(loading, "model", lambda *args: repeating(trained(*args), repeated))
            evaluate(
                compose(
                    "evaluate", f"ckpt='{run}/last.ckpt'", "metrics=[memorisation]", "features=classifier",
                    "metrics.memorisation.n_samples=300", f"output_dir='{tmp_path}'", *overrides,
                )
            )  # fmt: skip
        (folder,) = tmp_path.iterdir()
        return json.loads((folder / "metrics.json").read_text())["memorisation"], folder

    return of


def test_a_model_that_repeats_its_training_images_is_flagged(memorisation, capsys):
    found, folder = memorisation(digits(torch.arange(N_TRAIN)))
    assert found["memorised"]
    assert min(found["closer"], found["closer_by_pixels"]) > 0.95
    assert found["closest"]["nearest_by_pixels"] == found["closest"]["nearest_by_features"]
    assert (found["n"], found["test_n"], found["reference_n"], found["mirrored"]) == (300, 300, N_TRAIN, False)
    printed = capsys.readouterr().out
    assert "MEMORISATION" in printed
    assert found["verdict"] in printed
    picture = Image.open(folder / "memorisation.png")
    assert min(picture.size) > 100


def test_a_model_of_other_images_of_the_distribution_is_not_flagged(memorisation):
    found, _ = memorisation(digits(torch.arange(N_TRAIN, len(ALL))))
    assert not found["memorised"]
    for name in ("closer", "closer_by_pixels"):
        assert found[name] == pytest.approx(0.5, abs=3 * found[f"{name}_error"])
    assert "no sign of memorisation" in found["verdict"]


def test_a_model_that_was_hardly_trained_is_not_flagged(memorisation):
    found, _ = memorisation(None)
    assert not found["memorised"]
    assert found["closer_by_pixels"] < 0.1  # its samples are noise


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_copies_are_copies_where_training_mirrors(memorisation, monkeypatch, flip):
    monkeypatch.setattr(Digits, "__init__", lambda self, **_: super(Digits, self).__init__(flip))
    found, _ = memorisation(InMemory(ALL.pixels(range(N_TRAIN)).flip(-1), ALL.labels[:N_TRAIN]))
    assert (found["memorised"], found["mirrored"]) == (flip, flip)
    assert (found["closer_by_pixels"] > 0.95) == flip
    assert max(found["closest"]["nearest_by_pixels"]) < N_TRAIN
