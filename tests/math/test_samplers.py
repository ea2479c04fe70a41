"""Samplers on data whose scores are known: moments, marginals, convergence, agreement with each other."""

import math

import pytest
import torch
from conftest import continuous, diffusion_of
from options import PARAMETERIZATIONS, VARIANCES
from scipy.stats import kstest

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.chain.sde import VPSDE
from ddpm.generation.interpolation import interpolate, slerp
from ddpm.operator.base import Measurement
from ddpm.operator.inpaint import Inpaint
from ddpm.parameterization.eps import Eps
from ddpm.sampler.ancestral import Ancestral
from ddpm.sampler.ddim import DDIM
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.sampler.euler import Euler
from ddpm.sampler.heun import Heun
from ddpm.sampler.langevin import Langevin
from ddpm.sampler.predictor_corrector import PredictorCorrector
from ddpm.sampler.reverse_sde import ReverseSDE
from ddpm.schedule.linear import Linear
from ddpm.solver.replacement import Replacement
from ddpm.variance.fixed_small import FixedSmall

N = 4000
GAUSSIAN = torch.tensor([[1.0, 0.2, 0.4]], dtype=torch.float64)
MIXTURE = torch.tensor([[0.3, -0.6, 0.15], [0.7, 0.4, 0.25]], dtype=torch.float64)
"""Weight, mean and standard deviation of each component."""

EVERY = [
    Ancestral(clip=False),
    DDIM(200, clip=False),
    DDIM(clip=False, eta=0.5),
    DPMSolver(50, clip=False),
    DPMSolver(200, clip=False, stochastic=True),
    Euler(clip=False),
    Heun(50, clip=False),
    ReverseSDE(clip=False),
    PredictorCorrector(clip=False, corrections=2, snr=0.05),
    Langevin(200, clip=False, inner=10, rate=0.2),
]


def label(sampler):
    return f"{type(sampler).__name__}-{sampler.steps}-{sampler.spacing}"


def optimal(data, process):
    """The model whose denoiser is E[x_0 | x_t] for x_0 from a mixture of Gaussians."""
    weight, mean, std = data.T

    def x_0(x_t, t):
        alpha_bar = torch.sigmoid(process.log_snr(t)).view(-1, 1, 1, 1, 1)
        x = x_t[..., None]
        variance = alpha_bar * std**2 + 1 - alpha_bar
        away = x - alpha_bar.sqrt() * mean
        share = torch.softmax(weight.log() - 0.5 * variance.log() - 0.5 * away**2 / variance, -1)
        return (share * (mean + alpha_bar.sqrt() * std**2 / variance * away)).sum(-1)

    return continuous(x_0, process, Eps())


def noise_of(n=N):
    """n values of one image."""
    return IndexedNoise(0, Stream.SAMPLES, [0], (1, 1, n), dtype=torch.float64)


@pytest.fixture(scope="module")
def chain():
    return Process(Linear().beta())


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sampler", EVERY, ids=label)
@pytest.mark.slow
def test_samples_have_the_moments_of_the_data(chain, sampler, data):
    x = sampler.sample(optimal(data, chain), noise_of()).flatten()
    weight, mean, std = data.T
    true_mean = (weight * mean).sum()
    central = mean - true_mean
    true_var = (weight * (std**2 + central**2)).sum()
    fourth = (weight * (central**4 + 6 * central**2 * std**2 + 3 * std**4)).sum()
    assert abs(x.mean() - true_mean) < 4 * (true_var / N).sqrt()
    assert abs(x.var() - true_var) < 4 * ((fourth - true_var**2) / N).sqrt()
    if len(data) > 1:
        share = (x < -0.2).double().mean()
        below = (weight * torch.distributions.Normal(mean, std).cdf(torch.tensor(-0.2))).sum()
        assert abs(share - below) < 4 * (below * (1 - below) / N).sqrt()


def mixture_cdf(process, t):
    alpha_bar = process.alpha_bar[t]
    weight, mean, std = MIXTURE.T
    normal = torch.distributions.Normal(alpha_bar.sqrt() * mean, (alpha_bar * std**2 + 1 - alpha_bar).sqrt())
    return lambda x: (weight * normal.cdf(torch.as_tensor(x)[..., None])).sum(-1).numpy()


@pytest.mark.parametrize("sampler", [ReverseSDE(clip=False), PredictorCorrector(clip=False)], ids=label)
@pytest.mark.slow
def test_marginals_of_the_reverse_sde_are_those_of_q(chain, sampler):
    states = {state.step: state.x for state in sampler.trajectory(optimal(MIXTURE, chain), noise_of())}
    for t in (800, 500, 200, 50):
        assert kstest(states[t].flatten().numpy(), mixture_cdf(chain, t)).pvalue > 1e-3
    assert kstest(states[500].flatten().numpy(), mixture_cdf(chain, 300)).pvalue < 1e-3


@pytest.mark.slow
def test_marginals_of_the_forward_sde_are_those_of_q(chain):
    sde, weight = VPSDE(chain), MIXTURE[:, 0]
    generator = torch.Generator().manual_seed(0)
    component = torch.multinomial(weight, N, replacement=True, generator=generator)
    x_0 = MIXTURE[component, 1] + MIXTURE[component, 2] * torch.randn(N, generator=generator, dtype=torch.float64)
    noise = IndexedNoise(0, Stream.SAMPLES, [0], (N,), dtype=torch.float64)
    for t in (50, 300, 1000):
        x = sde.simulate(x_0[None], t, noise, until=t / 1000).flatten()
        assert kstest(x.numpy(), mixture_cdf(chain, t)).pvalue > 1e-3
        marginal = sde.marginal(x_0[:1], torch.tensor([t / 1000], dtype=torch.float64))
        expected = chain.marginal(x_0[:1], torch.tensor([t]))
        assert torch.allclose(marginal.mean, expected.mean, rtol=1e-12)
        assert torch.allclose(marginal.log_var, expected.log_var, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("T", [7, 100, 1000])
def test_beta_of_the_sde_at_the_end_of_a_step_is_that_of_the_step(T, dtype):
    process = Process(Linear(T).beta())
    t = torch.arange(1, T + 1)
    assert torch.allclose(VPSDE(process).beta(t.to(dtype) / T), -T * torch.log1p(-process.beta[1:]), rtol=1e-12)


@pytest.mark.parametrize("sampler", [Ancestral(), Langevin(inner=70), PredictorCorrector(corrections=70)], ids=label)
def test_no_noise_is_drawn_twice_however_often_a_sampler_draws(sampler):
    model = continuous(lambda x_t, t: 0.5 * torch.tanh(x_t), Process(Linear(3).beta()), Eps())
    drawn = []

    def noise(step):
        drawn.append(step)
        return torch.ones(1, 1, 2, 2, dtype=torch.float64)

    sampler.sample(model, noise)
    assert len(drawn) == len(set(drawn))
    drawn.clear()
    measurement = Measurement(Inpaint("half"), torch.zeros(1, 1, 2, 2, dtype=torch.float64), 0.0)
    Replacement(resamplings=3).sample(model, sampler, measurement, noise)
    assert len(drawn) == len(set(drawn))


def test_beta_of_the_sde_is_that_of_the_chain(chain):
    sde = VPSDE(chain)
    beta = sde.beta((torch.arange(1, 1001) - 0.5) / 1000)
    assert torch.allclose(beta, 1000 * chain.beta[1:], rtol=0.02)
    assert torch.allclose((-beta / 1000).cumsum(0).exp(), chain.alpha_bar[1:], rtol=1e-10)
    x, score = torch.full((1, 2), 2.0, dtype=torch.float64), torch.full((1, 2), -3.0, dtype=torch.float64)
    s = torch.tensor([0.35])
    b = sde.beta(s)
    assert torch.allclose(sde.drift(x, s), -b * 1.0)
    assert torch.allclose(sde.diffusion(x, s) ** 2, b)
    assert torch.allclose(sde.reverse_drift(x, s, score), -b + 3 * b)
    assert torch.allclose(sde.flow(x, s, score), -b + 1.5 * b)


DETERMINISTIC = [
    (DDIM, "log_snr", 1),
    (DPMSolver, "log_snr", 2),
    (Heun, "log_snr", 2),
    (Heun, "karras", 2),
    (Euler, "quadratic", 1),
]


@pytest.mark.parametrize(("kind", "spacing", "order"), DETERMINISTIC)
@pytest.mark.slow
def test_deterministic_samplers_converge_with_their_order(chain, kind, spacing, order):
    _, mean, std = GAUSSIAN[0]
    x_T = noise_of(50)(0)
    first, last = chain.alpha_bar[1], chain.alpha_bar[-1]
    ratio = ((first * std**2 + 1 - first) / (last * std**2 + 1 - last)).sqrt()
    exact = first.sqrt() * mean + ratio * (x_T - last.sqrt() * mean)
    model, errors = optimal(GAUSSIAN, chain), []
    counts = (40, 80, 160, 320)
    for steps in counts:
        states = kind(steps, clip=False, spacing=spacing).trajectory(model, noise_of(50))
        at_first = next(state.x for state in states if state.step == 1)  # the last step, to 0, leaves the grid
        errors.append((at_first - exact).abs().max().item())
    slope = -(math.log(errors[-1]) - math.log(errors[0])) / (math.log(counts[-1]) - math.log(counts[0]))
    assert slope == pytest.approx(order, abs=0.25)


def denoise(x_t, t):
    return torch.tanh(2 * x_t) * (1 - 0.3 * t.reshape(-1, 1, 1, 1) / 50)


def image_noise(n=3):
    return IndexedNoise(3, Stream.SAMPLES, range(n), (1, 4, 4), dtype=torch.float64)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [None, 10])
def test_ddim_with_eta_one_is_ancestral_with_fixed_small(steps, clip):
    model = diffusion_of(denoise, variance=FixedSmall())
    pairs = zip(
        DDIM(steps, clip, eta=1.0).trajectory(model, image_noise()),
        Ancestral(steps, clip).trajectory(model, image_noise()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert torch.allclose(ours.x, theirs.x, atol=1e-10)


def test_first_order_dpm_solver_is_ddim():
    model = diffusion_of(denoise)
    found = DPMSolver(20, spacing="uniform", order=1).sample(model, image_noise())
    assert torch.allclose(found, DDIM(20).sample(model, image_noise()), atol=1e-10)


SHORT = [
    Ancestral(12),
    DDIM(12, eta=0.3),
    DPMSolver(12, spacing="uniform"),
    DPMSolver(12, spacing="uniform", stochastic=True),
    Euler(12),
    Heun(12, spacing="uniform"),
    ReverseSDE(12),
    PredictorCorrector(12),
    Langevin(12, spacing="uniform", inner=2),
]


@pytest.mark.parametrize("variance", [(each, 0.3 if each.extra_channels else None) for each in VARIANCES])
@pytest.mark.parametrize("sampler", SHORT, ids=label)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_denoising_function_gives_the_same_images_in_every_parameterization(sampler, variance, dtype):
    noise = IndexedNoise(3, Stream.SAMPLES, range(3), (1, 4, 4), dtype=dtype)
    samples = []
    for parameterization in PARAMETERIZATIONS:
        model = diffusion_of(denoise, parameterization=parameterization, variance=variance[0], raw=variance[1])
        samples.append(sampler.sample(model, noise))
    assert samples[0].dtype == dtype
    for sample in samples[1:]:
        assert torch.allclose(sample, samples[0], atol=1e-8 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("sampler", SHORT, ids=label)
def test_evaluations_are_counted(sampler):
    calls = []
    model = diffusion_of(lambda x_t, t: calls.append(1) or denoise(x_t, t))
    sampler.sample(model, image_noise())
    assert len(calls) == sampler.evaluations(12)


@pytest.mark.parametrize("sampler", SHORT, ids=label)
def test_no_noise_is_drawn_twice_and_images_do_not_mix(sampler):
    drawn = []

    def noise(step):
        drawn.append(step)
        return image_noise()(step)

    together = sampler.sample(diffusion_of(denoise), noise)
    assert len(set(drawn)) == len(drawn)
    alone = sampler.sample(diffusion_of(denoise), IndexedNoise(3, Stream.SAMPLES, [2], (1, 4, 4), dtype=torch.float64))
    assert torch.allclose(together[2:], alone, atol=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "trailing", "log_snr", "karras"])
@pytest.mark.parametrize("sampler", SHORT, ids=label)
@pytest.mark.slow
def test_every_sampler_takes_every_spacing(chain, sampler, spacing):
    model = optimal(GAUSSIAN, chain)
    kind = type(sampler)
    x = kind(15, spacing=spacing).sample(model, noise_of(20))
    assert x.isfinite().all()
    assert x.abs().max() < 5


def test_options_out_of_range_are_explained():
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 2"):
        DDIM(eta=2)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        DPMSolver(order=3)
    with pytest.raises(ValueError, match="corrections must be at least 1 and snr above 0"):
        PredictorCorrector(snr=0)
    with pytest.raises(ValueError, match="inner must be at least 1 and rate in"):
        Langevin(inner=0)
    with pytest.raises(ValueError, match="spacing must be one of uniform, quadratic, trailing, log_snr, karras"):
        Heun(spacing="even")


@pytest.mark.parametrize("sampler", SHORT + [DDIM(12)], ids=label)
def test_deterministic_samplers_are_those_that_draw_nothing_on_the_way(sampler):
    drawn = []
    sampler.sample(diffusion_of(denoise), lambda step: drawn.append(step) or image_noise()(step))
    assert sampler.deterministic == (drawn == [0])


def test_slerp_stays_on_the_sphere_and_meets_both_ends():
    a, b = image_noise(2)(0)
    points = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(points[0], a)
    assert torch.allclose(points[-1], b)
    a, b = a / a.norm(), b / b.norm()
    points = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(points.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
    angles = (points[:-1] * points[1:]).flatten(1).sum(1).acos()
    assert torch.allclose(angles, angles[:1].expand(4))
    assert torch.allclose(slerp(a, a, torch.tensor([0.3])), a)


def test_interpolation_decodes_the_mixture_of_what_shares_its_noise():
    model, noise = diffusion_of(denoise), image_noise(1)
    a, b = torch.zeros(2, 1, 4, 4, dtype=torch.float64) + torch.tensor([0.7, -0.4]).view(2, 1, 1, 1)
    sampler, weight = DDIM(10), torch.tensor([0.0, 0.25, 1.0])
    found = interpolate(model, sampler, a, b, 6, weight, noise)
    process = sampler.chain(model).process
    t = torch.tensor([6])
    one, other = (process.diffuse(x[None], t, noise(0)) for x in (a, b))
    for w, x in zip(weight.tolist(), found, strict=True):
        *_, last = sampler.trajectory(model, noise, (6, (1 - w) * one + w * other))
        assert torch.allclose(x, last.x[0], atol=1e-10)
