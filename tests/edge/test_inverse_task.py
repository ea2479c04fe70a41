"""sample.py task=inverse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.commands.sample import sample
from ddpm.data.digits import Digits
from ddpm.metrics.restoration import psnr, ssim
from ddpm.operator.inpaint import Inpaint

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
        cfg = compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{parent}'", "task=inverse", *overrides)
        return sample(cfg)

    return done


def of(folder):
    return json.loads((folder / "inverse.json").read_text()), dict(np.load(folder / "inverse.npz"))


def unit(grey):
    """Grey levels of 8x8 digits, stretched to 0..255, as the reconstructions in [-1, 1]."""
    return torch.from_numpy(grey).float() / 127.5 - 1


@pytest.mark.parametrize("solver", ["dps", "pigdm", "mmps", "replacement"])
@pytest.mark.parametrize("operator", ["inpaint", "super_resolution", "gaussian_blur", "motion_blur"])
def test_every_solver_works_with_every_operator(do, operator, solver):
    size = {"motion_blur": ("operator.length=3",), "gaussian_blur": ("operator.width=0.7",)}.get(operator, ())
    folder = do(f"operator={operator}", f"solver={solver}", *size, "n=3", "draws=2", "noise=0.1", "sampler.steps=5")
    assert {path.name for path in folder.iterdir()} == {"inverse.json", "inverse.npz", "inverse.png", "sample.json"}
    found, arrays = of(folder)
    assert arrays["draws"].shape == (3, 2, 1, 8, 8)
    assert (arrays["draws"][:, 0] != arrays["draws"][:, 1]).any()
    assert np.array_equal(arrays["x_0"], np.round(Digits().load("test").pixels(range(3)).double().numpy() * 255 / 16))
    assert len(found["psnr"]["of_each_mean"]) == 3
    assert np.isfinite(found["residual"])
    assert found["operator"]["_target_"].startswith(f"ddpm.operator.{operator}.")


def test_scores_are_those_of_the_arrays(do):
    found, arrays = of(do("operator=inpaint", "solver=mmps", "n=4", "draws=3", "sampler=ddim", "sampler.steps=5"))
    true, draws = unit(arrays["x_0"]), unit(arrays["draws"])
    assert found["psnr"]["draws"] == pytest.approx(
        float(psnr(draws.flatten(0, 1), true.repeat_interleave(3, 0)).mean()), abs=0.2
    )
    assert found["psnr"]["mean"] == pytest.approx(float(psnr(draws.mean(1), true).mean()), abs=0.2)
    assert found["ssim"]["mean"] == pytest.approx(float(ssim(draws.mean(1), true).mean()), abs=0.02)
    off = (draws.mean(1) - true).square().flatten(1).mean(1)
    assert found["psnr"]["of_each_mean"] == pytest.approx((10 * torch.log10(4 / off)).tolist(), abs=0.2)


def test_known_pixels_are_kept_and_draws_do_not_depend_on_the_batch(do):
    options = ("operator=inpaint", "operator.mask=half", "solver=replacement", "n=3", "draws=2")
    _, whole = of(do(*options))
    _, parts = of(do(*options, "batch_size=4"))
    known = Inpaint("half").known(8, 8).bool().numpy()
    assert (np.abs(whole["draws"] - whole["x_0"][:, None].astype(float))[..., known] <= 1).all()
    assert (np.abs(whole["draws"].astype(float) - parts["draws"]) <= 16).all()
    assert (whole["draws"] == parts["draws"]).mean() > 0.99


def test_a_picture_can_be_measured(do, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    found, arrays = of(do("operator=super_resolution", "solver=dps", f"input='{tmp_path}/mine.png'", "draws=1"))
    assert found["n"] == 1
    assert found["input"].endswith("mine.png")
    assert (np.abs(arrays["x_0"][0, 0].astype(int) - pixels) <= 8).all()


def brighter(x):
    return (x + 0.1).clamp(max=1) ** 3


def test_a_function_of_the_users_is_an_operator(do):
    found, _ = of(do("operator=function", f"operator.function={__name__}.brighter", "solver=dps", "n=2", "draws=1"))
    assert found["operator"]["function"].endswith("brighter")


def test_noise_is_added_to_the_measurement_and_is_that_of_the_image(do):
    quiet, loud, fewer = (
        of(do("operator=inpaint", "solver=pigdm", "draws=1", *options))[1]["draws"]
        for options in (("n=3",), ("n=3", "noise=0.5"), ("n=2", "noise=0.5"))
    )
    assert not np.array_equal(quiet, loud)
    assert (np.abs(loud[:2].astype(float) - fewer) <= 16).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_of_each_image_and_best_for_the_image_itself(metric):
    true = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = true.clone()
    found[1] += 0.2 * torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(1))
    found[2] = 0
    each = metric(found.clamp(-1, 1), true)
    assert each.shape == (3,)
    assert each[0] > each[1] > each[2]


def test_psnr_is_that_of_its_formula():
    true = torch.zeros(2, 1, 4, 4)
    found = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    assert torch.allclose(psnr(found, true), torch.tensor([20.0, 40.0]))


def test_a_split_can_be_measured(do):
    found, arrays = of(do("operator=inpaint", "solver=dps", "input=train", "n=2", "draws=1"))
    assert found["input"] == "train"
    assert np.array_equal(arrays["x_0"], np.round(Digits().load("train").pixels(range(2)).double().numpy() * 255 / 16))
