import torch
from conftest import diffusion_of

from ddpm.variance.fixed_large import FixedLarge
from ddpm.variance.fixed_small import FixedSmall
from ddpm.variance.learned import Learned
from ddpm.variance.learned_range import LearnedRange

T = torch.arange(1, 51)
X = torch.zeros(50, 1, dtype=torch.float64)


def log_var(variance, raw=None):
    model = diffusion_of(lambda x_t, t: x_t, variance=variance, raw=raw)
    return model.p(X, T).log_var.flatten(), model.process


def test_fixed_small_is_beta_tilde_and_takes_the_second_at_the_first_time():
    found, process = log_var(FixedSmall())
    assert torch.equal(found[1:], process.log_beta_tilde[2:])
    assert found[0] == found[1]


def test_fixed_large_is_beta_and_takes_beta_tilde_of_the_second_at_the_first_time():
    found, process = log_var(FixedLarge())
    assert torch.equal(found[1:], process.beta[2:].log())
    assert found[0] == process.log_beta_tilde[2]


def test_learned_range_interpolates_between_the_two():
    low, process = log_var(LearnedRange(), raw=-1.0)
    high, _ = log_var(LearnedRange(), raw=1.0)
    middle, _ = log_var(LearnedRange(), raw=0.0)
    assert torch.allclose(low, process.log_beta_tilde[1:])
    assert torch.allclose(high, process.log_beta[1:])
    assert torch.allclose(middle, (low + high) / 2)


def test_learned_is_unbounded_and_starts_at_beta_tilde():
    start, process = log_var(Learned(), raw=0.0)
    far, _ = log_var(Learned(), raw=-7.5)
    assert torch.equal(start, process.log_beta_tilde[1:])
    assert torch.allclose(far, start - 7.5)


def test_variances_follow_the_respaced_chain():
    for variance, raw in ((FixedSmall(), None), (FixedLarge(), None), (Learned(), 0.1), (LearnedRange(), 0.5)):
        model = diffusion_of(lambda x_t, t: x_t, variance=variance, raw=raw)
        short = model.respace(5)
        expected = variance.log_var(short.process, torch.tensor([3]), X[:1] + (raw or 0), X[:1])
        assert short.p(X[:1], torch.tensor([3])).log_var == expected
        assert expected > model.p(X[:1], short.process.times[3:4]).log_var + 0.5
