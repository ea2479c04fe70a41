import math

import pytest
import torch
from torch.distributions import Normal

from ddpm.chain import spacing
from ddpm.chain.process import Process
from ddpm.schedule.cosine import Cosine
from ddpm.schedule.linear import Linear


def test_one_minus_alpha_bar_is_exact_at_both_ends(process):
    assert process.sigma[1].item() ** 2 == pytest.approx(1e-4, rel=1e-15)
    # A float32 cumulative product errs by 1.7e-4 here.
    beta = Linear().beta()
    second = 1 - (1 - beta[0].item()) * (1 - beta[1].item())
    assert process.sigma[2].item() ** 2 == pytest.approx(second, rel=1e-12)


def test_tables_stay_in_float64_when_the_model_is_cast(process):
    assert process.half().alpha_bar.dtype == torch.float64
    assert process.float().sigma.dtype == torch.float64
    assert process.to(torch.bfloat16).times.dtype == torch.int64


def test_marginal_is_the_composition_of_steps(process):
    mean, variance = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for t in range(1, 301):
        mean = process.sqrt_alpha[t] * mean
        variance = process.sqrt_alpha[t] ** 2 * variance + process.beta[t]
    marginal = process.marginal(torch.full((1, 1), 0.7, dtype=torch.float64), torch.tensor([300]))
    assert marginal.mean.item() == pytest.approx(mean.item(), rel=1e-12)
    assert marginal.log_var.exp().item() == pytest.approx(variance.item(), rel=1e-12)


def test_diffuse_is_a_sample_of_the_marginal(process, images, noise):
    t = torch.tensor([1, 2, 10, 100, 500, 900, 999, 1000])
    assert torch.allclose(process.diffuse(images, t, noise), process.marginal(images, t).sample(noise), atol=1e-12)


def test_diffuse_at_time_zero_is_the_image(process, images, noise):
    assert torch.equal(process.diffuse(images, torch.zeros(8, dtype=torch.long), noise), images)


@pytest.mark.parametrize("t", [2, 3, 50, 999, 1000])
def test_posterior_matches_bayes_rule_on_a_1d_gaussian(process, t):
    x_0, x_t = 0.3, -1.1
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    before = process.marginal(torch.full((1,), x_0, dtype=torch.float64), torch.tensor([t - 1]))
    step = process.step(z, torch.full((1,), t))
    log_joint = Normal(before.mean, (before.log_var / 2).exp()).log_prob(z)
    log_joint = log_joint + Normal(step.mean, (step.log_var / 2).exp()).log_prob(torch.tensor(x_t))
    weight = (log_joint - log_joint.max()).exp()
    weight = weight / weight.sum()
    mean = (weight * z).sum()
    variance = (weight * (z - mean) ** 2).sum()

    posterior = process.posterior(
        torch.tensor([[x_0]], dtype=torch.float64), torch.tensor([[x_t]], dtype=torch.float64), torch.tensor([t])
    )
    assert posterior.mean.item() == pytest.approx(mean.item(), abs=1e-6)
    assert posterior.log_var.exp().item() == pytest.approx(variance.item(), rel=1e-4)


def test_posterior_at_time_one_is_the_image(process, images, noise):
    posterior = process.posterior(images, noise, torch.ones(8, dtype=torch.long))
    assert torch.equal(posterior.mean, images)
    assert posterior.log_var.flatten()[0] == process.log_beta_tilde[2]


def test_beta_tilde_lies_below_beta(process):
    assert (process.log_beta_tilde[2:] < process.log_beta[2:]).all()
    assert process.log_beta_tilde[1:].isfinite().all()


def test_respacing_to_T_is_identity():
    process = Process(Cosine(T=100).beta())
    same = process.respace(spacing.uniform(process, 100))
    assert torch.equal(same.times, process.times)
    for name in ("beta", "alpha_bar", "sigma", "c_0", "c_t", "log_beta", "log_beta_tilde", "snr"):
        ours, theirs = getattr(same, name), getattr(process, name)
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=0, equal_nan=True), name


def test_respacing_keeps_the_marginals(process):
    times = torch.tensor([1, 7, 300, 1000])
    respaced = process.respace(times)
    assert respaced.T == 4
    assert respaced.times.tolist() == [0, 1, 7, 300, 1000]
    assert torch.allclose(respaced.alpha_bar[1:], process.alpha_bar[times], rtol=1e-12)
    again = respaced.respace(torch.tensor([2, 4]))
    assert again.times.tolist() == [0, 7, 1000]
    assert again.origin is process


@pytest.mark.parametrize("name", list(spacing.SPACINGS))
def test_spacings_increase_to_T_without_repetition(name):
    for T in (1, 2, 10, 1000):
        process = Process(Linear(T=T).beta())
        for steps in {1, 2, 3, T // 2, T} & set(range(1, T + 1)):
            times = spacing.SPACINGS[name](process, steps)
            assert len(times) == steps
            assert times[-1] == T
            assert steps == 1 or times[0] == (1 if name != "trailing" else round(T / steps))
            assert (times.diff() > 0).all()


def test_spacings_are_even_in_what_they_say(process):
    def steps_of(values):
        return (values.diff() / values.diff()[0]).tolist()

    ones = pytest.approx([1] * 19)
    assert steps_of((spacing.quadratic(process, 20) - 1).sqrt()) == ones
    assert steps_of(process.log_snr(spacing.log_snr(process, 20))) == ones
    assert steps_of((-process.log_snr(spacing.karras(process, 20)) / 14).exp()) == ones
    assert spacing.trailing(process, 10).tolist() == list(range(100, 1001, 100))
    assert spacing.uniform(process, 4).tolist() == [1, 334, 667, 1000]


def test_bad_chains_are_explained(process):
    with pytest.raises(ValueError, match=r"every beta_t must be in \(0, 1\), but beta_2 = 1.5"):
        Process(torch.tensor([0.1, 1.5]))
    with pytest.raises(ValueError, match=r"steps must be in 1..1000 .* got 1001"):
        spacing.uniform(process, 1001)
    for times in ([5, 3, 1000], [1, 2], [0, 1000]):
        with pytest.raises(ValueError, match=r"times must increase within 1..1000 and end with 1000"):
            process.respace(torch.tensor(times))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(T=2), Linear(T=1)])
def test_log_snr_and_time_are_inverse_at_real_times(schedule):
    process = Process(schedule.beta())
    T = process.T
    times = torch.cat([torch.linspace(0.01, 1, 50), torch.linspace(1, T, 999)]).double()
    log_snr = process.log_snr(times)
    assert (log_snr.diff()[times.diff() > 0] < 0).all()
    assert torch.allclose(process.time(log_snr), times, rtol=1e-9)
    assert torch.allclose(process.log_snr(torch.arange(1, T + 1)), process.snr[1:].log(), rtol=1e-12)
    assert process.log_snr(torch.tensor(0.0)).item() == math.inf
    assert process.time(torch.tensor(math.inf)).item() == 0


def test_tables_at_the_integers_are_those_of_the_chain(process):
    found = process.coefficients(torch.arange(1, process.T + 1))
    assert torch.allclose(found.sqrt_alpha_bar, process.sqrt_alpha_bar[1:], rtol=1e-12)
    assert torch.allclose(found.sigma, process.sigma[1:], rtol=1e-12)
    assert torch.allclose(found.c_0, process.c_0[1:], rtol=1e-10)
    assert torch.allclose(found.c_t, process.c_t[1:], rtol=1e-10)


def test_a_chain_may_visit_times_between_the_integers(process):
    times = torch.tensor([0.5, 1.0, 7.25, 300.0, 1000.0], dtype=torch.float64)
    chain = process.respace(times)
    assert chain.times.tolist() == [0, *times.tolist()]
    assert torch.allclose(chain.alpha_bar[1:], torch.sigmoid(process.log_snr(times)), rtol=1e-12)
    assert torch.allclose(chain.alpha_bar[[2, 4, 5]], process.alpha_bar[[1, 300, 1000]], rtol=1e-12)
    with pytest.raises(ValueError, match="non-integer times are times of the original process"):
        chain.respace(torch.tensor([1.5, 5.0]))
