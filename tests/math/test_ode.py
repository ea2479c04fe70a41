import math

import pytest
import torch
from conftest import continuous
from options import PARAMETERIZATIONS
from test_optimal_denoiser import MEAN, STD
from torch.distributions import Normal

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.likelihood import probability_flow
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.v import V
from ddpm.schedule.cosine import Cosine
from ddpm.schedule.linear import Linear


@pytest.fixture(scope="module")
def images():
    return IndexedNoise(0, Stream.LIKELIHOOD, range(3), (1, 2, 2), dtype=torch.float64)(0) * STD + MEAN


def gaussian(process, parameterization=None):
    """The optimal model of Gaussian data; between the integers it follows the interpolated log-SNR."""

    def x_0(x_t, t):
        alpha_bar = torch.sigmoid(process.log_snr(t)).view(-1, 1, 1, 1)
        gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        return MEAN + gain * (x_t - alpha_bar.sqrt() * MEAN)

    return continuous(x_0, process, parameterization or Eps())


def analytic(process, x):
    """log of the density of q(x_1) for Gaussian data, nats per image."""
    alpha_bar = process.alpha_bar[1]
    return Normal(alpha_bar.sqrt() * MEAN, (alpha_bar * STD**2 + 1 - alpha_bar).sqrt()).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_likelihood_of_gaussian_data_is_the_analytic_log_density(images, parameterization):
    process = Process(Linear().beta())
    # N(0, I) at T in place of q(x_T) costs first of all a term linear in x; mirrored images cancel it.
    mirrored = torch.cat([images, 2 * MEAN - images])
    found = probability_flow.log_density(gaussian(process, parameterization), mirrored, probability_flow.exact)
    error = (found.log_p - analytic(process, mirrored)) / (4 * math.log(2))
    assert error.view(2, 3).mean(0).abs().max() < 1e-3
    assert found.evaluations > 10


def test_likelihood_holds_for_other_schedules(images):
    process = Process(Cosine().beta())
    error = probability_flow.log_density(gaussian(process), images, probability_flow.exact).log_p - analytic(
        process, images
    )
    assert error.abs().max() / (4 * math.log(2)) < 1e-3


def test_latents_are_those_of_the_gaussian_map(images):
    process = Process(Linear().beta())
    found = probability_flow.log_density(gaussian(process), images, probability_flow.exact)
    first, last = process.alpha_bar[1], process.alpha_bar[-1]
    ratio = ((last * STD**2 + 1 - last) / (first * STD**2 + 1 - first)).sqrt()
    expected = last.sqrt() * MEAN + ratio * (images - first.sqrt() * MEAN)
    assert torch.allclose(found.latent, expected, atol=1e-4)
    carried = (Normal(0.0, 1.0).log_prob(expected) + ratio.log()).flatten(1).sum(1)
    assert torch.allclose(found.log_p, carried, atol=4e-3)


def curved(x, t):
    """A denoiser whose Jacobian is not diagonal."""
    flat = x.flatten(1)
    return (torch.tanh(flat) + 0.3 * torch.sin(flat.roll(1, 1))).view(x.shape)


def test_exact_divergence_is_the_trace_of_the_jacobian(images):
    model = continuous(curved, Process(Linear().beta()), Eps())
    x = images.clone().requires_grad_()
    found = probability_flow.exact(x, probability_flow.velocity(model, x, 0.5))
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda one: probability_flow.velocity(model, one[None], 0.5), images[i]
        )
        assert found[i].item() == pytest.approx(jacobian.view(4, 4).trace().item(), rel=1e-9)


def test_hutchinson_is_exact_on_average_over_all_signs(images):
    model = continuous(curved, Process(Linear().beta()), Eps())
    x = images.clone().requires_grad_()
    exact = probability_flow.exact(x, probability_flow.velocity(model, x, 0.5))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    each = [
        probability_flow.hutchinson(v.view(1, 1, 2, 2).expand(3, -1, -1, -1))(
            x, probability_flow.velocity(model, x, 0.5)
        )
        for v in signs
    ]
    assert torch.allclose(torch.stack(each).mean(0), exact, rtol=1e-9)
    assert torch.stack(each).std(0).min() > 1e-3


def test_velocity_at_a_trained_time_is_that_of_the_chain(images):
    model = continuous(curved, Process(Linear().beta()), V())
    process = model.process
    for t in (1, 2, 77, 1000):
        log_snr = process.log_snr(torch.tensor(t))
        eps = model.predict(images, torch.full((3,), t)).eps
        expected = 0.5 * ((1 - process.alpha_bar[t]) * images - process.sigma[t] * eps)
        assert torch.allclose(probability_flow.velocity(model, images, log_snr.item()), expected, rtol=1e-7)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("t", [1.4, 77.5, 999.5])
def test_eps_between_trained_times_is_that_of_the_denoiser(images, parameterization, t):
    process, t = Process(Linear().beta()), torch.tensor(t, dtype=torch.float64)
    log_snr = process.log_snr(t)
    expected = (images - torch.sigmoid(log_snr).sqrt() * curved(images, t)) / torch.sigmoid(-log_snr).sqrt()
    assert torch.allclose(continuous(curved, process, parameterization).eps(images, t), expected, rtol=1e-7)


def test_a_tighter_tolerance_costs_more_and_errs_less(images):
    process = Process(Linear().beta())
    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        found = probability_flow.log_density(gaussian(process), images, probability_flow.exact, tolerance, tolerance)
        errors.append((found.log_p - analytic(process, images)).abs().max().item())
        costs.append(found.evaluations)
    assert costs[0] < costs[1] < costs[2]
    assert errors[2] < errors[0]


def test_code_length_of_a_uniform_density_is_the_number_of_bits():
    # A density of 1/2 in each of the dimensions of [-1, 1]
    log_p = torch.tensor([12 * math.log(0.5)], dtype=torch.float64)
    assert probability_flow.code_length(log_p, 12, 257).item() == pytest.approx(8)


def test_dequantised_levels_fill_their_bins():
    x_0 = torch.full((1, 1, 1, 10_000), 2 * 3 / 16 - 1, dtype=torch.float64)
    uniform = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = probability_flow.dequantise(x_0, uniform, 17)
    assert ((x + 1) * 8).round().unique().tolist() == [3]
    assert x.min().item() == pytest.approx(-0.625 - 1 / 16, abs=1e-3)
    assert x.max().item() == pytest.approx(-0.625 + 1 / 16, abs=1e-3)
