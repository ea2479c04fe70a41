import pytest
import torch
from conftest import diffusion_of

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.likelihood import elbo
from ddpm.likelihood.sampled_bound import Proposal, pilot, pilot_times, proposal, sampled_bound
from ddpm.schedule.linear import Linear

T = 200


def denoise(x_t, t):
    return torch.tanh(x_t) * (1 - t.view(-1, 1, 1, 1) / 400)


@pytest.fixture(scope="module")
def model():
    return diffusion_of(denoise, Process(Linear(T=T, beta_T=0.1).beta()))


@pytest.fixture(scope="module")
def moments(model):
    return pilot(model, images_of(8), noise_of(range(8)))


def images_of(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=generator).double() * 2 / 255 - 1


def noise_of(indices):
    return IndexedNoise(5, Stream.LIKELIHOOD, indices, (3, 4, 4), dtype=torch.float64)


def uniform_of(n, m, seed=0):
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inclusion_probabilities_sum_to_the_evaluations(moments):
    for evaluations in (3, 10, 50, T - 1):
        chosen = proposal(moments, evaluations)
        assert len(chosen.exact) + chosen.drawn == evaluations
        assert chosen.exact[0] == 1
        assert chosen.inclusion[1:].sum().item() == pytest.approx(evaluations)
        assert (chosen.inclusion[1:] > 0).all()
        assert chosen.inclusion[1:].max() <= 1 or chosen.drawn == 2


def test_inclusion_is_in_proportion_to_the_root_of_the_second_moment():
    moments = torch.linspace(1, 9, 999, dtype=torch.float64)
    inclusion = proposal(moments, 10).inclusion[2:]
    assert (inclusion[-1] / inclusion[0]).item() == pytest.approx(3, rel=0.02)


def test_times_are_drawn_with_their_inclusion_probability(moments):
    chosen = proposal(moments, 10)
    n = 20_000
    times = chosen.times(uniform_of(n, chosen.drawn))
    assert times.min() == 1
    assert times.max() <= T
    frequency = torch.bincount(times.flatten(), minlength=T + 1) / n
    error = (frequency - chosen.inclusion)[1:]
    assert (error.abs() < 5 * (chosen.inclusion[1:] / n).sqrt() + 1e-12).all()
    assert (frequency[chosen.exact] == 1).all()
    edges = chosen.times(torch.tensor([[0.0], [1 - 1e-16]], dtype=torch.float64).expand(2, chosen.drawn))
    assert edges.max() <= T
    assert (edges[:, len(chosen.exact) :] > 1).all()


def test_each_image_draws_from_equal_parts_of_the_proposal(moments):
    chosen = proposal(moments, 10)
    drawn = chosen.times(uniform_of(500, chosen.drawn))[:, len(chosen.exact) :]
    assert (drawn.diff(dim=1) >= 0).all()
    cumulated = chosen.inclusion.index_fill(0, chosen.exact, 0.0).cumsum(0)
    part = torch.arange(chosen.drawn)
    assert (cumulated[drawn] > part - 1e-9).all()
    assert (cumulated[drawn - 1] < part + 1 + 1e-9).all()


def test_the_estimate_is_unbiased_given_the_noise(model, moments):
    images = images_of(2)
    full = elbo.bound(model, images, noise_of(range(2)))
    n = 2000
    chosen = proposal(moments, 6)
    found = sampled_bound(
        model,
        images.repeat_interleave(n, 0),
        noise_of([0] * n + [1] * n),
        chosen,
        uniform_of(2 * n, chosen.drawn),
    )
    total = found.total.view(2, n)
    assert torch.equal(found.decoder.view(2, n)[:, 0], full.decoder)
    assert torch.allclose(found.prior.view(2, n)[:, 0], full.prior)
    assert torch.allclose(found.first_error.view(2, n)[:, 0], full.first_error)
    assert ((total.mean(1) - full.total).abs() < 4 * total.std(1) / n**0.5).all()
    # The variance is reported for each image, at most too large.
    reported = found.variance_over_times.view(2, n).mean(1)
    assert (reported > 0.9 * total.var(1)).all()
    assert (reported < 4 * total.var(1)).all()


def test_the_interval_over_times_covers_the_full_bound(model, moments):
    images, noise = images_of(16), noise_of(range(16))
    full = elbo.bound(model, images, noise).summary()["bits_per_dim"]
    chosen = proposal(moments, 10)
    covered = 0
    for seed in range(100):
        found = sampled_bound(model, images, noise, chosen, uniform_of(16, chosen.drawn, seed)).summary()
        covered += abs(found["bits_per_dim"] - full) < 1.96 * found["standard_error_times"]
    assert 90 <= covered <= 100


def test_importance_and_parts_beat_uniform_times(model, moments):
    images, noise = images_of(64), noise_of(range(64))
    exact = elbo.bound(model, images, noise).total

    def error(chosen):
        found = sampled_bound(model, images, noise, chosen, uniform_of(64, chosen.drawn))
        return (found.total - exact).std()

    assert error(proposal(moments, 10)) < 0.25 * error(proposal(torch.ones(T - 1), 10))


def test_as_many_evaluations_as_times_are_the_full_bound(model):
    images, noise = images_of(3), noise_of(range(3))
    chosen = proposal(torch.ones(T - 1), T)
    found = sampled_bound(model, images, noise, chosen, uniform_of(3, 0))
    assert torch.allclose(found.total, elbo.bound(model, images, noise).total, rtol=1e-12)
    assert found.summary()["standard_error_times"] == 0


def test_a_perfect_denoiser_leaves_uniform_times(model):
    chosen = proposal(torch.zeros(T - 1), 10)
    assert torch.allclose(chosen.inclusion[2:], torch.full((T - 1,), 9 / (T - 1), dtype=torch.float64))


def test_the_pilot_measures_the_second_moments(model):
    images, noise = images_of(8), noise_of(range(8))
    terms = elbo.bound(model, images, noise).terms
    times = pilot_times(T)
    assert times[0] == 2
    assert times[-1] == T
    assert len(times) <= 64
    found = pilot(model, images, noise)
    assert found.shape == (T - 1,)
    assert torch.allclose(found[times - 2], (terms[:, times - 1] ** 2).mean(0), rtol=1e-9)
    between = (terms[:, 1:] ** 2).mean(0)
    assert (found / between).log().abs().max() < 1


def test_terms_by_time_are_those_of_the_full_bound(model, moments):
    images, noise = images_of(1).expand(400, 3, 4, 4), noise_of([0] * 400)
    chosen = proposal(moments, 10)
    times, means = sampled_bound(model, images, noise, chosen, uniform_of(400, chosen.drawn)).by_time()
    full_times, full_means = elbo.bound(model, images[:1], noise_of([0])).by_time()
    assert full_times.tolist() == list(range(1, T + 1))
    assert len(times) > 50
    assert torch.allclose(means, full_means[times - 1])


def test_too_few_evaluations_are_explained(moments):
    with pytest.raises(ValueError, match="evaluations must be at least 3 per image, got 2"):
        proposal(moments, 2)


def test_short_chains_need_no_proposal():
    for steps in (1, 2, 3):
        chosen = proposal(torch.ones(steps - 1), 10)
        assert isinstance(chosen, Proposal)
        assert chosen.times(torch.empty(4, 0)).tolist() == [list(range(1, steps + 1))] * 4
