import math

import pytest
import torch
from conftest import diffusion_of
from options import PARAMETERIZATIONS, options
from torch.distributions import Normal, kl_divergence

from ddpm.chain.gaussian import bits_per_dim
from ddpm.chain.process import Process
from ddpm.likelihood import elbo
from ddpm.loss.vlb import VLB
from ddpm.parameterization.eps import Eps
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_large import FixedLarge
from ddpm.variance.fixed_small import FixedSmall
from ddpm.variance.learned import Learned
from ddpm.variance.learned_range import LearnedRange

RAW = -0.4
VARIANCES = [(each, RAW if each.extra_channels else None) for each in options("variance")]


def denoise(x_t, t):
    return torch.tanh(x_t) * (1 - t.view(-1, 1, 1, 1) / 100)


@pytest.mark.parametrize(("variance", "raw"), VARIANCES)
def test_vlb_is_the_same_for_eps_mu_x0_and_v(images, noise, variance, raw):
    t = torch.tensor([1, 2, 3, 10, 20, 30, 49, 50])
    values = []
    for parameterization in PARAMETERIZATIONS:
        model = diffusion_of(denoise, parameterization=parameterization, variance=variance, raw=raw)
        prediction = model.predict(model.process.diffuse(images, t, noise), t)
        values.append(VLB()(prediction, images))
    for value in values[1:]:
        assert torch.allclose(value, values[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("variance", "raw"), VARIANCES)
@pytest.mark.parametrize("levels", [17, 256])
def test_terms_agree_with_a_direct_evaluation_of_equation_5(images, noise, variance, raw, levels):
    images = ((images + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    model = diffusion_of(denoise, parameterization=Eps(), variance=variance, raw=raw, levels=levels)
    found = elbo.bound(model, images, lambda t: noise)

    beta = Linear(T=50, beta_T=0.2).beta()
    alpha_bar = torch.cumprod(1 - beta, 0)
    expected = []
    for t in range(1, 51):
        i = t - 1
        x_t = alpha_bar[i].sqrt() * images + (1 - alpha_bar[i]).sqrt() * noise
        x_0 = denoise(x_t, torch.full((8,), t))
        before = alpha_bar[i - 1] if t > 1 else torch.tensor(1.0)
        c_0 = before.sqrt() * beta[i] / (1 - alpha_bar[i])
        c_t = (1 - beta[i]).sqrt() * (1 - before) / (1 - alpha_bar[i])
        small = beta[max(i, 1)] * (1 - alpha_bar[max(i, 1) - 1]) / (1 - alpha_bar[max(i, 1)])
        sigma = {
            FixedSmall: small.sqrt(),
            FixedLarge: (small if t == 1 else beta[i]).sqrt(),
            Learned: (small * math.exp(RAW)).sqrt(),
            LearnedRange: (beta[i].log() * (1 + RAW) / 2 + small.log() * (1 - RAW) / 2).exp().sqrt(),
        }[type(variance)]
        p = Normal(c_0 * x_0 + c_t * x_t, sigma)
        if t == 1:
            half = 1 / (levels - 1)
            upper = torch.where(images > 0.999, 1.0, p.cdf(images + half))
            lower = torch.where(images < -0.999, 0.0, p.cdf(images - half))
            # Far in the tail the difference of two cdfs cancels; compare where it does not.
            term = torch.where(upper - lower > 1e-9, -(upper - lower).log(), torch.nan)
        else:
            term = kl_divergence(Normal(c_0 * images + c_t * x_t, small.sqrt()), p)
        expected.append(term.flatten(1).sum(1))
    expected = torch.stack(expected, 1)
    assert torch.allclose(found.terms[:, 1:], expected[:, 1:], rtol=1e-8)
    comparable = expected[:, 0].isfinite()
    assert torch.allclose(found.terms[comparable, 0], expected[comparable, 0], rtol=1e-5)

    prior = kl_divergence(
        Normal(alpha_bar[-1].sqrt() * images, (1 - alpha_bar[-1]).sqrt()), Normal(torch.tensor(0.0), torch.tensor(1.0))
    )
    assert torch.allclose(found.prior, prior.flatten(1).sum(1), rtol=1e-8)
    assert torch.allclose(found.total, found.prior + found.terms.sum(1))
    assert torch.allclose(found.rate + found.decoder, found.total)


def test_decoder_term_agrees_with_cdfs_near_the_image(images, noise):
    model = diffusion_of(lambda x_t, t: images + 0.003)
    t = torch.ones(8, dtype=torch.long)
    prediction = model.predict(model.process.diffuse(images, t, noise), t)
    p = Normal(images + 0.003, (model.process.log_beta_tilde[2] / 2).exp())
    upper = torch.where(images > 0.999, 1.0, p.cdf(images + 1 / 255))
    lower = torch.where(images < -0.999, 0.0, p.cdf(images - 1 / 255))
    assert torch.allclose(elbo.term(prediction, images), -(upper - lower).log().flatten(1).sum(1), rtol=1e-6)


def test_prior_of_the_linear_schedule_costs_almost_nothing():
    process = Process(Linear().beta())
    x_0 = torch.full((1, 3, 32, 32), 0.5)
    assert bits_per_dim(elbo.prior(process, x_0), 3072).item() == pytest.approx(7.3e-6, rel=0.01)


def test_fixed_large_costs_half_a_bit_with_a_perfect_mean():
    images = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    model = diffusion_of(lambda x_t, t: images, Process(Linear().beta()), variance=FixedLarge())
    bound = elbo.bound(model, images, lambda t: torch.zeros_like(images))
    assert bits_per_dim(bound.terms[:, 1:].sum(), 1).item() == pytest.approx(0.486, abs=5e-4)


def test_true_weights_on_the_error_of_the_clean_image(process):
    for t, weight in ((2, 2726), (100, 0.089), (1000, 4e-7)):
        images = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        model = diffusion_of(lambda x_t, t, images=images: images + 0.01, process)
        prediction = model.predict(torch.ones_like(images), torch.tensor([t]))
        assert elbo.term(prediction, images).item() / 1e-4 == pytest.approx(weight, rel=0.05)


def test_perfect_denoiser_with_the_posterior_variance_pays_for_the_prior_and_decoder_alone(images, noise):
    model = diffusion_of(lambda x_t, t: images)
    bound = elbo.bound(model, images, lambda t: noise)
    assert bound.terms[:, 1:].abs().max() < 1e-18


def test_bound_counts_every_time_once(images, noise):
    seen = []
    model = diffusion_of(lambda x_t, t: seen.append(t.tolist()) or denoise(x_t, t))
    elbo.bound(model, images, lambda t: noise)
    assert seen == [[t] * 8 for t in range(1, 51)]


def test_bound_reports_bits_per_dim_with_the_standard_error_over_images(images, noise):
    bound = elbo.bound(diffusion_of(denoise), images, lambda t: noise)
    summary = bound.summary()
    bits = bound.total / (48 * math.log(2))
    assert summary["bits_per_dim"] == pytest.approx(bits.mean().item())
    assert summary["standard_error"] == pytest.approx(bits.std().item() / 8**0.5)
    assert summary["rate"] + summary["distortion"] == pytest.approx(summary["bits_per_dim"])


def test_vlb_is_logged_as_an_unbiased_estimate_of_the_bound_without_its_prior(images, noise):
    model = diffusion_of(denoise)
    bound = elbo.bound(model, images, lambda t: noise)
    losses = []
    for time in range(1, 51):
        t = torch.full((8,), time)
        losses.append(VLB()(model.predict(model.process.diffuse(images, t, noise), t), images))
    mean = VLB().logged(torch.stack(losses), model.T).mean(0)
    assert torch.allclose(mean, bits_per_dim(bound.terms.sum(1), 48), rtol=1e-12)


def test_clipping_changes_the_bound_only_when_asked(images, noise):
    model = diffusion_of(lambda x_t, t: 1.5 * images)
    free, clipped = elbo.bound(model, images, lambda t: noise), elbo.bound(model, images, lambda t: noise, clip=True)
    assert (clipped.total < free.total).all()
