"""Nearest neighbours, density and coverage, and the test for copies."""

import pytest
import torch

from ddpm.metrics import neighbours
from ddpm.metrics.base import Sizes
from ddpm.metrics.data_copying import Closer, closer, verdict
from ddpm.metrics.density_coverage import DensityCoverage
from ddpm.metrics.neighbours import blocks, nearest, squared_distances


def points(n, seed, dim=5):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("elements", [1, 64, 2**24])
def test_nearest_neighbours_are_those_of_all_distances_at_once(elements, monkeypatch):
    monkeypatch.setattr(neighbours, "ELEMENTS", elements)
    x, y = points(23, 0), points(31, 1)
    expected = torch.cdist(x.double(), y.double()).sort(1)
    distances, index = nearest(x, blocks(y), 4)
    assert torch.allclose(distances.sqrt(), expected.values[:, :4])
    assert torch.equal(index, expected.indices[:, :4])


def test_distances_of_pixels_are_exact():
    x = torch.randint(256, (9, 3000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = x.flip(0)
    expected = (x.long()[:, None] - y.long()).square().sum(2)
    assert torch.equal(squared_distances(x, y).long(), expected)
    assert nearest(x, blocks(y))[0].eq(0).all()


def density_coverage(samples, real, neighbourhood=5):
    found = DensityCoverage(neighbourhood)({"features": samples}, {"features": real})
    return found["density"], found["coverage"]


@pytest.mark.parametrize("elements", [8, 2**24])
def test_density_and_coverage_follow_their_definition(elements, monkeypatch):
    monkeypatch.setattr(neighbours, "ELEMENTS", elements)
    samples, real = points(40, 0) + 0.3, points(30, 1)
    for k in (1, 5):
        radii = torch.cdist(real, real).sort(1).values[:, k]
        inside = torch.cdist(real, samples) < radii[:, None]  # Naeem et al.: prdc.compute_prdc
        expected = inside.sum(0).float().mean().item() / k, inside.any(1).float().mean().item()
        assert density_coverage(samples, real, k) == pytest.approx(expected)


def test_density_and_coverage_of_points_on_a_line():
    real = torch.arange(10.0)[:, None]
    # each real image reaches to its nearest at 1, without it: a copy lies in one neighbourhood, a point between in two
    assert density_coverage(real, real, 1) == (1, 1)
    assert density_coverage(real[:-1] + 0.5, real, 1) == (2, 1)
    assert density_coverage(real[:1].repeat(7, 1), real, 1) == (1, 0.1)
    assert density_coverage(real + 100, real, 1) == (0, 0)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_copies_of_the_real_images_have_density_and_coverage_one(offset):
    real = points(200, 0, 64) + offset  # a copy is exactly as far from an image as the image it copies
    assert density_coverage(real.flip(0), real) == (1, 1)


def test_density_and_coverage_of_the_real_distribution_have_the_expectation_of_naeem_et_al():
    n, k = 400, 5
    found = torch.tensor([density_coverage(points(n, seed, 2), points(n, 100 + seed, 2), k) for seed in range(20)])
    expected = 1 - torch.tensor([(n - i) / (2 * n - i) for i in range(1, k + 1)]).prod()  # their Eq. 8, N = M
    assert found[:, 0].mean() == pytest.approx(1, abs=0.02)
    assert found[:, 1].mean() == pytest.approx(expected.item(), abs=0.01)


def test_density_and_coverage_of_too_few_images_are_unreliable():
    assert DensityCoverage().caution(Sizes(500, 500, 8)) is None
    assert "take at least 500 of each" in DensityCoverage().caution(Sizes(499, 500, 8))
    with pytest.raises(ValueError, match="neighbourhood must be at least 1, got 0; 5 is typical"):
        DensityCoverage(0)


def test_probability_of_being_closer_counts_pairs():
    samples, held_out = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 3.0])
    assert closer(samples, held_out).probability == (2 + 1.5 + 1.5 + 0) / 8
    assert closer(torch.zeros(5), torch.ones(6)) == (1, 0)
    assert closer(torch.ones(6), torch.zeros(5)) == (0, 0)
    with pytest.raises(ValueError, match="at least 2 samples and 2 test images, got 1 and 6"):
        closer(torch.zeros(1), torch.ones(6))


@pytest.mark.parametrize(("shift", "probability"), [(0.0, 0.5), (0.6, 0.6643)])  # Phi(0.6 / 2^{1/2})
def test_interval_of_the_probability_covers_it(shift, probability):
    draws = [closer(points(150, seed, 1)[:, 0], points(80, 1000 + seed, 1)[:, 0] + shift) for seed in range(300)]
    covered = sum(abs(each.probability - probability) < 1.96 * each.error for each in draws) / len(draws)
    assert 0.92 <= covered <= 0.98


def test_samples_are_too_close_if_it_is_certain_and_material():
    assert Closer(0.6, 0.01).too_often
    assert not Closer(0.6, 0.06).too_often  # not certain
    assert not Closer(0.54, 0.001).too_often  # not material: 8% of copies
    assert not Closer(0.0, 0.0).too_often
    copies, faultless = Closer(0.99, 0.01), Closer(0.5, 0.01)
    assert verdict(copies, copies).startswith("MEMORISATION")
    assert verdict(faultless, faultless).startswith("no sign of memorisation")
    assert "too close by pixels: look at the pairs" in verdict(faultless, copies)
