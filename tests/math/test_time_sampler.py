import pytest
import torch

from ddpm.time_sampler.importance import Importance
from ddpm.time_sampler.stratified import Stratified
from ddpm.time_sampler.uniform import Uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ready(T=10, **options):
    """An importance sampler whose history says that the loss of time t is t."""
    sampler = Importance(T, **options)
    for _ in range(sampler.history):
        sampler.update(torch.arange(1, T + 1), torch.arange(1.0, T + 1))
    return sampler


@pytest.mark.parametrize("sampler", [Uniform(7), Stratified(7), Importance(7), ready(7)])
def test_every_time_from_the_first_to_the_last_is_drawn(sampler):
    t, weight = sampler(5000, generator())
    assert t.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (t.dtype, weight.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("sampler", [Uniform(10), Stratified(10), Importance(10), ready()])
def test_weighted_mean_is_unbiased_for_uniform_times(sampler):
    t, weight = sampler(200_000, generator())
    f = (t.float() - 3) ** 2
    expected = ((torch.arange(1, 11) - 3.0) ** 2).mean()
    spread = (weight * f).std() / 200_000**0.5
    assert abs((weight * f).mean() - expected) < 5 * spread


def test_uniform_times_are_equally_likely():
    t, _ = Uniform(10)(100_000, generator())
    share = torch.bincount(t, minlength=11)[1:] / 100_000
    assert (share - 0.1).abs().max() < 5 * (0.09 / 100_000) ** 0.5


def test_stratified_times_cover_the_range_evenly_over_all_ranks():
    sampler = Stratified(1000)
    for seed in range(20):
        ranks = [sampler(25, generator(seed), rank, 4)[0] for rank in range(4)]
        bins = torch.bincount((torch.cat(ranks) - 1) // 10, minlength=100)
        assert bins.max() <= 2
        tenths = torch.bincount((torch.cat(ranks) - 1) // 100, minlength=10)
        assert ((tenths - 10).abs() <= 1).all()


def test_every_rank_alone_sees_the_whole_range_of_stratified_times():
    for rank in range(4):
        t, _ = Stratified(1000)(25, generator(), rank, 4)
        assert t.max() - t.min() > 700


def test_each_stratified_time_is_uniform():
    sampler = Stratified(10)
    first = torch.cat([sampler(4, generator(seed))[0][:1] for seed in range(5000)])
    share = torch.bincount(first, minlength=11)[1:] / 5000
    assert (share - 0.1).abs().max() < 5 * (0.09 / 5000) ** 0.5


@pytest.mark.parametrize("sampler", [Uniform(1000), Stratified(1000), ready(1000)])
def test_ranks_share_no_draws_and_together_draw_what_one_would(sampler):
    together = sampler(12, generator())[0]
    apart = [sampler(4, generator(), rank, 3)[0] for rank in range(3)]
    assert torch.equal(torch.cat(apart), together)
    assert not torch.equal(apart[0], apart[1])


def test_importance_is_uniform_until_every_history_is_full():
    sampler = Importance(5, history=3)
    for _ in range(2):
        sampler.update(torch.arange(1, 6), torch.arange(1.0, 6.0))
    sampler.update(torch.arange(1, 5), torch.ones(4))
    assert torch.equal(sampler.probabilities(), torch.full((5,), 0.2, dtype=torch.float64))
    sampler.update(torch.tensor([5]), torch.ones(1))
    assert sampler.probabilities()[4] > 0.2


def test_importance_follows_the_root_mean_square_of_the_last_losses():
    sampler = Importance(3, history=2, uniform_share=1e-12)
    for losses in ([9.0, 9.0, 9.0], [1.0, 2.0, 0.0], [3.0, 2.0, 4.0]):
        sampler.update(torch.tensor([1, 2, 3]), torch.tensor(losses))
    root = torch.tensor([(1 + 9) / 2, 4.0, 16 / 2], dtype=torch.float64).sqrt()
    assert torch.allclose(sampler.probabilities(), root / root.sum(), rtol=1e-9)


def test_uniform_share_bounds_the_weights():
    sampler = ready(uniform_share=0.1)
    assert sampler.probabilities().sum().item() == pytest.approx(1)
    assert sampler.probabilities().min() >= 0.1 / 10


def test_repeated_times_in_one_batch_enter_the_history_in_order():
    sampler = Importance(2, history=3)
    sampler.update(torch.tensor([1, 2, 1, 1, 1, 1]), torch.tensor([10.0, 7.0, 11.0, 12.0, 13.0, 14.0]))
    assert sorted(sampler.losses[0].tolist()) == [12, 13, 14]
    sampler.update(torch.tensor([1, 1]), torch.tensor([15.0, 16.0]))
    assert sorted(sampler.losses[0].tolist()) == [14, 15, 16]
    assert sampler.losses[1].tolist() == [7, 0, 0]
    assert sampler.count.tolist() == [7, 1]


def test_history_is_part_of_the_state():
    fresh = Importance(10)
    fresh.load_state_dict(ready().state_dict())
    assert torch.equal(fresh.probabilities(), ready().probabilities())


def test_values_out_of_range_are_explained():
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        Importance(10, history=0)
    with pytest.raises(ValueError, match=r"uniform_share must be in \(0, 1\], got 0"):
        Importance(10, uniform_share=0)
