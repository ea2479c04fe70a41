"""PSNR, SSIM and LPIPS of images in [-1, 1] are those of their formulas, which are made for intensities."""

import pytest
import torch
import torchvision
from torchmetrics.functional.image import lpips as theirs
from torchmetrics.functional.image import structural_similarity_index_measure

from ddpm.data.scaling import as_uint8, to_unit
from ddpm.metrics.restoration import check, lpips, psnr, ssim


@pytest.mark.parametrize(("a", "b"), [(0.02, -0.02), (-1.0, 1.0), (-0.9, -0.7), (0.4, 0.4)])
def test_ssim_of_constant_images_is_the_luminance_term_of_their_intensities(a, b):
    found = ssim(torch.full((1, 1, 16, 16), a), torch.full((1, 1, 16, 16), b))
    p, q = (a + 1) / 2, (b + 1) / 2
    assert float(found) == pytest.approx((2 * p * q + 1e-4) / (p**2 + q**2 + 1e-4), rel=1e-6)


@pytest.mark.parametrize("levels", [256, 17])
def test_scores_are_those_of_the_same_images_in_0_to_255(levels):
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(levels, (2, 3, 3, 16, 16), generator=generator, dtype=torch.uint8)
    x, y = to_unit(grey, levels)
    # 17 levels are rounded on their way to 0..255, by at most half a level of 256
    wide = [as_uint8(each, levels).double() for each in grey]
    error = ((wide[0] - wide[1]) ** 2).flatten(1).mean(1)
    assert torch.allclose(psnr(x, y).double(), 10 * torch.log10(255**2 / error), atol=1e-4 if levels == 256 else 0.05)
    expected = structural_similarity_index_measure(*wide, data_range=255.0, reduction="none")
    assert torch.allclose(ssim(x, y).double(), expected, atol=1e-5 if levels == 256 else 2e-3)


def test_psnr_of_an_image_that_is_met_exactly_is_infinite():
    images = torch.stack([torch.full((1, 8, 8), -1.0), torch.zeros(1, 8, 8)])
    assert psnr(images - torch.tensor([3.0, 0.1]).view(2, 1, 1, 1), images).tolist() == [
        torch.inf,
        pytest.approx(26.02, abs=1e-2),
    ]


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
def test_grey_levels_are_no_images_in_minus_1_to_1(metric, alexnet):
    with pytest.raises(TypeError, match=r"floats in \[-1, 1\], got torch.uint8"):
        metric(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32))


@pytest.fixture
def alexnet(monkeypatch):
    """AlexNet with random weights, which needs no file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torchvision.models.alexnet(weights=None).features
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: layers)


def test_lpips_is_that_of_each_pair_in_minus_1_to_1(alexnet):
    found, true = torch.rand(2, 2, 1, 31, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    each = [
        theirs.learned_perceptual_image_patch_similarity(a.expand(1, 3, -1, -1), b.expand(1, 3, -1, -1))
        for a, b in zip(found, true, strict=True)
    ]
    assert torch.allclose(lpips(found, true), torch.stack(each), atol=1e-6)


def test_images_that_are_too_small_for_a_score_are_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    check((1, 6, 6), False)
    check((1, 31, 31), True)
    with pytest.raises(ValueError, match=r"SSIM needs at least 6 pixels per side, got \(6, 5\)"):
        check((1, 6, 5), False)
    with pytest.raises(ValueError, match=r"LPIPS needs at least 31 pixels per side, got \(28, 28\); leave lpips out"):
        check((1, 28, 28), True)
