"""The two ends of a chain: tables without cancellation, and a terminal SNR of zero."""

import math
from functools import partial

import mpmath
import pytest
import torch
from conftest import continuous, diffusion_of
from options import LOSSES, PARAMETERIZATIONS, VARIANCES

from ddpm.chain import spacing
from ddpm.chain.process import Process
from ddpm.chain.sde import VPSDE
from ddpm.likelihood import elbo, probability_flow
from ddpm.operator.inpaint import Inpaint
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.mu import Mu
from ddpm.parameterization.v import V
from ddpm.parameterization.x0 import X0
from ddpm.sampler.ancestral import Ancestral
from ddpm.sampler.ddim import DDIM
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.sampler.euler import Euler
from ddpm.sampler.heun import Heun
from ddpm.sampler.langevin import Langevin
from ddpm.sampler.predictor_corrector import PredictorCorrector
from ddpm.sampler.reverse_sde import ReverseSDE
from ddpm.schedule.cosine import Cosine
from ddpm.schedule.linear import Linear
from ddpm.solver.mmps import MMPS
from ddpm.solver.pigdm import PiGDM
from ddpm.variance.fixed_small import FixedSmall

EXACT = mpmath.MPContext()
EXACT.dps = 60
ZERO = Cosine(20, beta_max=1)
FIRST_ORDER = [
    Ancestral,
    DDIM,
    partial(DDIM, eta=0.5),
    partial(DPMSolver, order=1),
    partial(DPMSolver, order=1, stochastic=True),
]


def exact_tables(beta):
    """c_0, c_t, beta_tilde and the log-SNR at t = 1..T, to 60 digits, from float64 betas."""
    found, before = [], EXACT.mpf(1)
    for b in map(EXACT.mpf, beta.tolist()):
        now = before * (1 - b)
        c_0 = EXACT.sqrt(before) * b / (1 - now)
        c_t = EXACT.sqrt(1 - b) * (1 - before) / (1 - now)
        found.append([c_0, c_t, b * (1 - before) / (1 - now), EXACT.log(now / (1 - now))])
        before = now
    return (torch.tensor([float(x) for x in column], dtype=torch.float64) for column in zip(*found, strict=True))


@pytest.mark.parametrize(
    "schedule", [Linear(300), Cosine(300), Cosine(300, beta_max=1 - 1e-9), Cosine(300, beta_max=1 - 1e-13)]
)
def test_tables_are_exact_however_near_beta_is_to_zero_or_one(schedule):
    process = Process(schedule.beta())
    c_0, c_t, beta_tilde, log_snr = exact_tables(schedule.beta())
    at = process.coefficients(torch.arange(1, 301))
    for found, expected in (
        (process.c_0[1:], c_0),
        (process.c_t[1:], c_t),
        (process.log_beta_tilde[2:].exp(), beta_tilde[1:]),
        (process.lambda_t[1:], log_snr),
        (at.c_0, c_0),
        (at.c_t, c_t),
    ):
        assert torch.allclose(found, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("T", [20, 4000])
def test_the_betas_of_cosine_are_exact(T):
    def f(t):
        return EXACT.cos((EXACT.mpf(t) / T + EXACT.mpf("0.008")) / EXACT.mpf("1.008") * EXACT.pi / 2) ** 2

    beta = Cosine(T).beta()
    for t in (1, 2, T // 2, T - 1):
        assert beta[t - 1].item() == pytest.approx(float(1 - f(t) / f(t - 1)), rel=1e-13, abs=0)


def test_steps_may_be_merged_until_almost_nothing_is_left():
    process = Process(Linear(4000).beta())
    chain = process.respace(torch.tensor([1, 4000]))
    assert torch.equal(chain.log_alpha_bar, process.log_alpha_bar[[0, 1, 4000]])
    for name in ("c_0", "c_t", "log_beta", "log_beta_tilde", "lambda_t"):
        assert getattr(chain, name)[1:].isfinite().all(), name
    assert not chain.zero_terminal_snr
    for steps in (2, 3, 10):
        for name, times in spacing.SPACINGS.items():
            chain = process.respace(times(process, steps))
            assert (chain.alpha_bar.diff() < 0).all(), name


def test_ddim_keeps_the_noise_that_ancestral_sampling_keeps_to_the_last_digit(images, noise):
    process = Process(Cosine(50, beta_max=1 - 1e-12).beta())
    model = diffusion_of(lambda x_t, t: 0.5 * torch.tanh(x_t), process, V(), FixedSmall())
    for step in (50, 49, 25, 2):
        at = model.predict(noise, torch.full((8,), step))
        moved = DDIM(eta=1.0).move(model, at, step, lambda _: torch.zeros_like(noise), None)
        assert torch.allclose(moved, at.p.mean, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- alpha_bar_T = 0


@pytest.mark.parametrize("T", [1, 2, 20])
def test_log_snr_and_time_are_inverse_up_to_minus_infinity(T):
    process = Process(Cosine(T, beta_max=1).beta())
    assert process.zero_terminal_snr
    times = torch.cat([torch.linspace(0.01, T, 997), torch.arange(1, T + 1)]).double().sort().values
    log_snr = process.log_snr(times)
    assert (log_snr.diff()[times.diff() > 1e-9] < 0).all()
    assert log_snr[-1] == -math.inf
    assert torch.allclose(process.time(log_snr), times, rtol=1e-9)
    assert torch.allclose(process.log_snr(torch.arange(1, T + 1)), process.lambda_t[1:], rtol=1e-12)
    tables = process.coefficients(torch.arange(1, T + 1))
    for name in tables._fields:
        assert torch.allclose(getattr(tables, name), getattr(process, name)[1:], rtol=1e-9, atol=1e-15), name


@pytest.mark.parametrize("parameterization", [V(), X0(), Mu()])
@pytest.mark.parametrize("make", [*FIRST_ORDER, DPMSolver, partial(DPMSolver, stochastic=True)])
@pytest.mark.parametrize("name", list(spacing.SPACINGS))
def test_samples_from_a_terminal_snr_of_zero_are_the_limit_of_small_ones(parameterization, make, name):
    def sampled(beta_max):
        process = Process(Cosine(20, beta_max=beta_max).beta())
        model = continuous(lambda x_t, t: 0.5 * torch.tanh(x_t) + 0.1, process, parameterization)
        noise = lambda step: torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(step)).double()  # noqa: E731
        return make(spacing=name, steps=7, clip=False).sample(model, noise)

    found = sampled(1.0)
    assert found.isfinite().all()
    if make in FIRST_ORDER and name not in ("log_snr", "karras"):  # others go by the log-SNR at T
        assert torch.allclose(found, sampled(1 - 1e-12), atol=1e-5)


@pytest.mark.parametrize("parameterization", [each for each in PARAMETERIZATIONS if not isinstance(each, Eps)])
@pytest.mark.parametrize("variance", VARIANCES)
def test_losses_and_the_bound_are_finite_at_a_terminal_snr_of_zero(images, noise, parameterization, variance):
    model = diffusion_of(
        lambda x_t, t: 0.4 * torch.tanh(x_t), Process(ZERO.beta()), parameterization, variance, raw=0.1
    )
    t = torch.tensor([20, 20, 19, 19, 2, 2, 1, 1])
    prediction = model.predict(model.process.diffuse(images, t, noise), t)
    for loss in LOSSES:
        assert loss(prediction, images).isfinite().all()
    for reading in (prediction.x_0, prediction.eps, prediction.score, prediction.p.mean, prediction.p.log_var):
        assert reading.isfinite().all()
    assert torch.allclose(model.predict(noise, torch.full((8,), 20)).eps, noise)
    bound = elbo.bound(model, images, lambda step: noise)
    assert bound.total.isfinite().all()
    assert (bound.prior == 0).all()


def test_the_prior_is_exact_at_both_ends():
    x_0 = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    for alpha_bar in ("1e-18", "0.5", "0.99999999999999999999"):
        a = EXACT.mpf(alpha_bar)
        beta, log_alpha = (torch.tensor([float(x)], dtype=torch.float64) for x in (1 - a, EXACT.log(a)))
        process = Process(beta, log_alpha=log_alpha)
        expected = (a / 4 - a - EXACT.log(1 - a)) / 2
        assert elbo.prior(process, x_0).item() == pytest.approx(float(expected), rel=1e-14, abs=0)


def test_eps_cannot_be_trained_to_a_terminal_snr_of_zero():
    with pytest.raises(ValueError, match=r"parameterization=eps cannot recover the image at t = 20, .*=v or x0"):
        diffusion_of(None, Process(ZERO.beta()), Eps())


@pytest.mark.parametrize("make", [Euler, Heun, ReverseSDE, PredictorCorrector, Langevin])
def test_what_is_infinite_at_a_terminal_snr_of_zero_is_refused_in_a_line(make):
    model = diffusion_of(lambda x_t, t: x_t, Process(ZERO.beta()), V())
    with pytest.raises(ValueError, match=r"cannot start from a terminal SNR of zero .* choose sampler=ancestral"):
        make().sample(model, lambda step: torch.zeros(1, 1, 2, 2))
    for solver in (MMPS(), PiGDM()):
        with pytest.raises(ValueError, match=r"terminal SNR above zero.* choose solver=dps or replacement"):
            solver.check(Inpaint(), model.process)
    with pytest.raises(ValueError, match="needs a terminal SNR above zero"):
        probability_flow.carry(model, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="no SDE has a terminal SNR of zero"):
        VPSDE(model.process)
