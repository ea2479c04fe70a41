"""Standard errors of FID and KID, and FID for infinitely many samples, on Gaussian features."""

import pytest
import torch

from ddpm.metrics.base import Sizes
from ddpm.metrics.fid import FID
from ddpm.metrics.fid_infinity import FIDInfinity
from ddpm.metrics.frechet import frechet, reference
from ddpm.metrics.kid import KID, variance

DIM = 16
SCALE = torch.linspace(0.2, 1.5, DIM, dtype=torch.float64)


def gaussian(n, seed, shift=0.0, scale=1.0, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) * SCALE[:dim] * scale + shift


def exact(n, dim=DIM):
    """Features whose mean and covariance are those of `gaussian`, without an error."""
    x = gaussian(n, 1000, dim=dim)
    x -= x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / (n - 1))
    return x @ (vectors * values.rsqrt()) @ vectors.T * SCALE[:dim]


def values(metric, samples, real):
    return metric({"features": samples}, {"features": real})


def covered(metric, name, error, draws, truth=None):
    """Share of the draws' 95% intervals that hold the truth, by default the mean over the draws."""
    found = [values(metric, samples, real) for samples, real in draws]
    mean = torch.tensor([each[name] for each in found], dtype=torch.float64)
    errors = torch.tensor([each[error] for each in found], dtype=torch.float64)
    centre = mean.mean() if truth is None else truth
    return ((mean - centre).abs() < 1.96 * errors).double().mean().item()


MODELS = {"far": (0.1, 1.2), "near": (0.02, 1.05)}
"""Shift and scale of the samples against the reference."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("metric", "name", "error"),
    [
        (FID(), "fid", "fid_error"),
        (KID(subsets=1, subset_size=500), "kid_mean", "kid_error"),
        (KID(subsets=10, subset_size=100), "kid_mean", "kid_error"),
    ],
)
def test_the_interval_covers_the_mean_over_draws_of_samples(metric, name, error, model):
    real = gaussian(600, 999)
    draws = [(gaussian(500, seed, *MODELS[model]), real) for seed in range(100)]
    assert 0.90 <= covered(metric, name, error, draws) <= 0.99


def test_the_error_of_fid_without_a_difference_is_not_too_small():
    real = exact(2000)
    share = covered(FID(), "fid", "fid_error", [(gaussian(500, seed), real) for seed in range(200)])
    assert share >= 0.95


def weighted(x, real, weights):
    """FID of the samples with these weights, of sum 1; with C = X^T X and C' = Y^T Y, tr(C C')^{1/2} = ||X Y^T||_*."""
    n, mean = len(x), weights @ x
    centred = (x - mean) * (weights[:, None] * n / (n - 1)).sqrt()
    others = (real - real.mean(0)) / (len(real) - 1) ** 0.5
    shift = mean - real.mean(0)
    root = torch.linalg.svdvals(centred @ others.T).sum()
    return shift @ shift + centred.square().sum() + others.square().sum() - 2 * root


@pytest.mark.parametrize("n", [40, 8])  # 8 are fewer than the features
def test_influence_is_the_derivative_of_fid_by_the_weights(n):
    x, real, step = gaussian(n, 0, 0.3), gaussian(50, 1, scale=1.3), 1e-4
    found = frechet(x, reference(real))
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    assert found.distance == pytest.approx(weighted(x, real, uniform).item(), rel=1e-6)
    assert found.influence.mean().abs() < 1e-10
    for i in (0, n - 1):
        toward = torch.eye(n, dtype=torch.float64)[i] - uniform
        up, down = (weighted(x, real, uniform + sign * step * toward) for sign in (1, -1))
        assert found.influence[i].item() == pytest.approx((up - down).item() / (2 * step), rel=1e-4)


def test_fid_infinity_of_real_images_against_real_images_is_zero_within_its_error():
    real = exact(5000)
    draws = [(gaussian(1000, seed), real) for seed in range(50)]
    assert covered(FIDInfinity(), "fid_infinity", "fid_infinity_error", draws, truth=0) >= 0.9
    found = torch.tensor(
        [[values(FIDInfinity(), *each)["fid_infinity"], values(FID(), *each)["fid"]] for each in draws]
    )
    assert found[:, 0].mean().abs() < 0.1 * found[:, 1].mean()  # which is all bias


def test_fid_infinity_covers_the_distance_of_the_distributions():
    real, shift, scale = exact(5000), 0.1, 1.2
    truth = DIM * shift**2 + ((scale - 1) ** 2 * SCALE.square()).sum().item()
    draws = [(gaussian(1000, seed, shift, scale), real) for seed in range(50)]
    assert 0.9 <= covered(FIDInfinity(), "fid_infinity", "fid_infinity_error", draws, truth) <= 1
    plain = torch.tensor([values(FID(), *each)["fid"] for each in draws])
    assert plain.mean() - truth > 3 * plain.std() / len(draws) ** 0.5  # which FID_N is too large for


def test_fid_infinity_needs_as_many_samples_in_its_smallest_subset_as_features():
    assert FIDInfinity().caution(Sizes(640, 64, 64)) is None
    for few in (Sizes(639, 64, 64), Sizes(640, 63, 64)):
        assert "take at least 640 samples and 64 reference images" in FIDInfinity().caution(few)
    with pytest.raises(ValueError, match="sizes must be at least 2, got 1; 15 is typical"):
        FIDInfinity(sizes=1)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_variance_of_kid_agrees_with_its_closed_form(shift, monkeypatch):
    # for N(mu, 1) and k = x^T y it is 4 ||mu - m'||^2 / N + 2 dim / (N (N - 1)), of which the second part counts twice
    monkeypatch.setattr("ddpm.metrics.kid._kernel", lambda x, y: x @ y.T)
    monkeypatch.setattr("ddpm.metrics.kid._diagonal", lambda x: x.square().sum(1))
    monkeypatch.setattr("ddpm.metrics.kid._BLOCK", 70)
    n, dim = 300, 8
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(50, dim, generator=generator, dtype=torch.float64)
    real -= real.mean(0)
    found = [variance(torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift, real) for _ in range(100)]
    expected = 4 * dim * shift**2 / n + 2 * 2 * dim / (n * (n - 1))
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)


def test_error_of_kid_includes_that_of_its_subsets():
    samples, real = gaussian(500, 0, 0.5), gaussian(600, 1)
    few, many = (values(KID(subsets, 50), samples, real) for subsets in (1, 400))
    assert few["kid_std"] == 0
    assert many["kid_error"] ** 2 == pytest.approx(variance(samples, real) + many["kid_std"] ** 2 / 400)
