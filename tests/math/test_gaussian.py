import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm.chain.gaussian import Gaussian, bits_per_dim, discretised_log_likelihood, kl, log1mexp
from ddpm.data.scaling import to_unit


def gaussian(mean, log_var):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(log_var, dtype=torch.float64))


def test_kl_equals_the_closed_form_of_torch():
    q, p = gaussian([0.0, 1.0, -2.0], [-1.0, 0.5, -9.0]), gaussian([0.1, -1.0, -2.0], [0.0, -3.0, -9.0])
    expected = kl_divergence(Normal(q.mean, (q.log_var / 2).exp()), Normal(p.mean, (p.log_var / 2).exp()))
    assert torch.allclose(kl(q, p), expected, rtol=1e-12)


def test_kl_of_nearly_equal_gaussians_keeps_its_precision():
    q, p = gaussian(0.0, 0.0), gaussian(0.0, 1e-9)
    assert kl(q, p).item() == pytest.approx(0.25e-18, rel=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [-1.7, -1.0, 0.013, 0.5, 1.0])
@pytest.mark.parametrize("log_var", [-12.0, -3.0, 2.0])
def test_discretised_likelihood_sums_to_one(levels, mean, log_var):
    x = to_unit(torch.arange(levels, dtype=torch.uint8), levels)
    masses = discretised_log_likelihood(x, gaussian([mean] * levels, log_var), levels).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("levels", [17, 256])
def test_discretised_likelihood_is_the_difference_of_cdfs_with_open_ends(levels):
    x = to_unit(torch.arange(levels, dtype=torch.uint8), levels).double()
    mean, sigma = 0.2, 0.3
    normal = Normal(torch.tensor(mean, dtype=torch.float64), sigma)
    half = 1 / (levels - 1)
    upper, lower = normal.cdf(x + half), normal.cdf(x - half)
    upper[-1], lower[0] = 1.0, 0.0
    found = discretised_log_likelihood(x, gaussian([mean] * levels, 2 * math.log(sigma)), levels).exp()
    assert torch.allclose(found, upper - lower, rtol=1e-6, atol=1e-12)


def test_discretised_likelihood_stays_finite_with_gradients_in_the_far_tail():
    mean = torch.tensor([-1.0, 1.0, 50.0, -30.0], requires_grad=True)
    x = torch.tensor([1.0, -1.0, 0.0, 0.5])
    log_p = discretised_log_likelihood(x, Gaussian(mean, torch.tensor(-9.9)), 256)
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert (log_p < -1000).all()
    # d/dmean points towards x, as strongly as the exponent of the density.
    assert torch.allclose(mean.grad, ((x - mean.detach()) * math.exp(9.9)), rtol=0.02)


def test_log1mexp_keeps_its_precision_at_both_ends():
    x = torch.tensor([-1e-12, -0.5, -1.0, -50.0], dtype=torch.float64)
    expected = [math.log(1e-12), math.log(1 - math.exp(-0.5)), math.log(1 - math.exp(-1)), -math.exp(-50)]
    assert log1mexp(x).tolist() == pytest.approx(expected, rel=1e-9)


def test_nats_become_bits_per_dim():
    assert bits_per_dim(torch.tensor(768 * math.log(256)), 768).item() == pytest.approx(8)
