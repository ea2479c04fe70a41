import pytest
import torch
from torch.distributions import Normal

from ddpm import spacing
from ddpm.process import Process
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
    same = process.respace(spacing.uniform(100, 100))
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


def test_uniform_spacing_has_both_ends_and_no_repetition():
    for T in (1, 2, 10, 1000):
        for steps in {1, 2, 3, T // 2, T} & set(range(1, T + 1)):
            times = spacing.uniform(T, steps)
            assert len(times) == steps
            assert times[-1] == T
            assert steps == 1 or times[0] == 1
            assert (times.diff() > 0).all()


def test_bad_chains_are_explained(process):
    with pytest.raises(ValueError, match=r"every beta_t must lie in \(0, 1\), but beta_2 = 1.5"):
        Process(torch.tensor([0.1, 1.5]))
    with pytest.raises(ValueError, match=r"steps must be in 1..1000 .* got 1001"):
        spacing.uniform(1000, 1001)
    for times in ([5, 3, 1000], [1, 2], [0, 1000]):
        with pytest.raises(ValueError, match=r"times must increase within 1..1000 and end with 1000"):
            process.respace(torch.tensor(times))
