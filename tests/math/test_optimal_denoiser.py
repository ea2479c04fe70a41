"""On Gaussian data the optimal denoiser is known, so samples and bound have closed forms."""

import pytest
import torch
from conftest import diffusion_of
from options import PARAMETERIZATIONS
from torch.distributions import Normal

from ddpm.chain.gaussian import bits_per_dim
from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.likelihood import elbo
from ddpm.likelihood.sampled_bound import pilot, proposal, sampled_bound
from ddpm.sampler.ancestral import Ancestral
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_large import FixedLarge
from ddpm.variance.fixed_small import FixedSmall
from ddpm.variance.learned import Learned

MEAN, STD = 0.2, 0.4


def optimal(process, parameterization=None, variance=None, levels=256):
    """The model whose denoiser is E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2); a learned variance is Var[x_{t-1} | x_t]."""

    def raw(t):
        alpha_bar = process.alpha_bar[t]
        left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
        beta_tilde = process.log_beta_tilde[t].exp() * (t > 1)
        return (beta_tilde + process.c_0[t] ** 2 * left).log() - process.log_beta_tilde[t]

    def x_0(x_t, t):
        shape = (-1, *(1,) * (x_t.ndim - 1))
        alpha_bar = process.alpha_bar[t].view(shape)
        gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        return MEAN + gain * (x_t - alpha_bar.sqrt() * MEAN)

    return diffusion_of(x_0, process, parameterization, variance, levels, raw)


@pytest.fixture(scope="module")
def chain():
    return Process(Linear(T=200, beta_T=0.1).beta())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_optimal_denoiser_on_gaussian_data_samples_that_gaussian(chain, parameterization):
    n = 4000
    noise = IndexedNoise(0, Stream.SAMPLES, [0], (n,), dtype=torch.float64)  # n values of one image
    # Given x_t, x_{t-1} is Gaussian: with its variance the chain reverses q exactly.
    x = Ancestral(clip=False).sample(optimal(chain, parameterization, Learned()), noise).flatten()
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * STD / n**0.5)
    assert x.var().item() == pytest.approx(STD**2, abs=4 * STD**2 * (2 / n) ** 0.5)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
@pytest.mark.parametrize("steps", [None, 10])
def test_fixed_variances_sample_the_gaussian_that_their_affine_chain_implies(chain, variance, steps):
    n = 4000
    noise = IndexedNoise(0, Stream.SAMPLES, [0], (n,), dtype=torch.float64)  # n values of one image
    model = optimal(chain, variance=variance)
    x = Ancestral(steps, clip=False).sample(model, noise).flatten()

    model = model if steps is None else model.respace(steps)
    mean, var = torch.zeros(1, 1, dtype=torch.float64), 1.0
    for t in range(model.T, 0, -1):
        time = torch.tensor([t])
        here, above = model.p(mean, time), model.p(mean + 1, time)
        mean, var = here.mean, (above.mean - here.mean).item() ** 2 * var + (here.log_var.exp().item() if t > 1 else 0)
    assert x.mean().item() == pytest.approx(mean.item(), abs=4 * (var / n) ** 0.5)
    assert x.var().item() == pytest.approx(var, abs=4 * var * (2 / n) ** 0.5)


# The terms above L_0 are quadratic in x_0 and in the noise: two points with the right moments average them exactly.
POINTS = torch.tensor([MEAN + STD, MEAN + STD, MEAN - STD, MEAN - STD], dtype=torch.float64).view(4, 1, 1, 1)
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(4, 1, 1, 1)


def closed_form(chain, variance):
    """L_{t-1} of the optimal denoiser for t = 1..T (but L_0), and L_T, nats."""
    beta, alpha_bar = chain.beta[1:], chain.alpha_bar[1:]
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    small = beta * (1 - before) / (1 - alpha_bar)
    # Var[x_0 | x_t], the error of the best denoiser
    left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    c_0 = before.sqrt() * beta / (1 - alpha_bar)
    sigma_2 = {FixedSmall: small, FixedLarge: beta, Learned: small + c_0**2 * left}[type(variance)]
    terms = 0.5 * (small / sigma_2 - 1 - (small / sigma_2).log() + c_0**2 * left / sigma_2)
    end, second_moment = alpha_bar[-1], MEAN**2 + STD**2
    return terms, 0.5 * (end * second_moment + (1 - end) - 1 - (1 - end).log())


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), Learned()])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_bound_on_gaussian_data_agrees_with_its_closed_form(chain, parameterization, variance):
    bound = elbo.bound(optimal(chain, parameterization, variance), POINTS, lambda t: SIGNS)
    terms, prior = closed_form(chain, variance)
    assert torch.allclose(bound.terms.mean(0)[1:], terms[1:], rtol=1e-9)
    assert bound.prior.mean().item() == pytest.approx(prior.item(), rel=1e-9)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_interval_of_the_sampled_bound_covers_the_closed_form_on_gaussian_data(chain, variance):
    model, copies = optimal(chain, variance=variance), 16
    x_0, signs = POINTS.repeat(copies, 1, 1, 1), SIGNS.repeat(copies, 1, 1, 1)
    terms, prior = closed_form(chain, variance)
    rate = bits_per_dim(terms[1:].sum() + prior, 1).item()
    chosen = proposal(pilot(model, POINTS, lambda t: SIGNS), 10)
    covered = 0
    for seed in range(100):
        uniform = torch.rand(len(x_0), chosen.drawn, generator=torch.Generator().manual_seed(seed))
        found = sampled_bound(model, x_0, lambda t: signs, chosen, uniform).summary()
        covered += abs(found["rate"] - rate) < 1.96 * found["standard_error_times"]
    assert 90 <= covered <= 100


def test_decoder_on_gaussian_data_agrees_with_an_integral(chain):
    x_0 = torch.tensor([MEAN], dtype=torch.float64)
    x_0 = ((x_0 + 1) * 127.5).round() / 127.5 - 1
    model = optimal(chain)
    nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = Normal(0.0, 1.0).log_prob(nodes).exp() * (nodes[1] - nodes[0])
    t = torch.ones(4001, dtype=torch.long)
    x_1 = model.process.diffuse(x_0.expand(4001, 1), t, nodes[:, None])
    found = (elbo.term(model.predict(x_1, t), x_0.expand(4001, 1)) * weight).sum()

    alpha_bar = chain.alpha_bar[1]
    gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    mean = MEAN + gain * (x_1.flatten() - alpha_bar.sqrt() * MEAN)
    p = Normal(mean, (chain.log_beta_tilde[2] / 2).exp())
    mass = p.cdf(x_0 + 1 / 255) - p.cdf(x_0 - 1 / 255)
    assert found.item() == pytest.approx(-(mass.log() * weight).sum().item(), rel=1e-6)


def test_respaced_bound_has_the_closed_form_of_its_own_chain(chain):
    model = optimal(chain).respace(20)
    bound = elbo.bound(model, POINTS, lambda t: SIGNS)
    alpha_bar = chain.alpha_bar[model.process.times]
    snr = alpha_bar / (1 - alpha_bar)
    left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    # With sigma^2 = beta_tilde a term is half the drop in signal-to-noise ratio times the error (Kingma et al. 2021).
    assert torch.allclose(bound.terms.mean(0)[1:], 0.5 * (snr[1:-1] - snr[2:]) * left[2:], rtol=1e-9)
