import math

import pytest
import torch
from options import SCHEDULES

from ddpm.chain.process import Process
from ddpm.schedule.constant import Constant
from ddpm.schedule.cosine import Cosine
from ddpm.schedule.linear import Linear
from ddpm.schedule.quadratic import Quadratic
from ddpm.schedule.sigmoid import Sigmoid
from ddpm.schedule.warm_up import WarmUp

ALL = [type(each) for each in SCHEDULES]


@pytest.mark.parametrize("schedule", ALL)
def test_alpha_bar_decreases_from_one_to_nearly_zero(schedule):
    alpha_bar = Process(schedule().beta()).alpha_bar
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar.shape == (1001,)
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] < 0.01


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("T", [1, 2, 10, 4000])
def test_betas_lie_between_zero_and_one_for_any_length(schedule, T):
    beta = schedule(T=T).beta()
    assert beta.shape == (T,)
    assert ((beta > 0) & (beta < 1)).all()


def test_linear_is_the_paper_schedule():
    beta = Linear().beta()
    assert (beta[0], beta[-1]) == (1e-4, 0.02)
    assert torch.allclose(beta.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=torch.float64))
    assert Process(beta).alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_quadratic_is_linear_in_the_root():
    root = Quadratic().beta().sqrt()
    assert (root[0].item(), root[-1].item()) == (pytest.approx(0.01), pytest.approx(0.02**0.5))
    assert torch.allclose(root.diff(), root.diff()[:1].expand(999))


def test_cosine_follows_its_alpha_bar():
    alpha_bar = Process(Cosine().beta()).alpha_bar
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    for t in (1, 10, 500, 990):
        assert alpha_bar[t].item() == pytest.approx(f(t) / f(0), rel=1e-12)
    assert Cosine().beta()[-1] == 0.999


def test_sigmoid_is_symmetric_and_flat_at_both_ends():
    beta = Sigmoid().beta()
    assert torch.allclose(beta + beta.flip(0), torch.full_like(beta, 0.0201))
    assert beta.diff()[0] < 0.02 * beta.diff()[499]


def test_warm_up_rises_over_the_fraction_that_is_written():
    for T, fraction, rising in ((100, 0.29, 29), (1000, 0.1, 100), (15, 0.1, 1)):
        beta = WarmUp(T, fraction=fraction).beta()
        assert int((beta < 0.02).sum()) == max(1, rising - 1)


def test_warm_up_rises_and_stays():
    beta = WarmUp(fraction=0.25).beta()
    assert (beta[0], beta[249]) == (1e-4, 0.02)
    assert (beta[:250].diff() > 0).all()
    assert (beta[249:] == 0.02).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(beta_T=2.0), r"beta_T must be in \(0, 1\], got 2.0; .* 0.02"),
        (lambda: Linear(beta_1=0), r"beta_1 must be in \(0, 1\), got 0"),
        (lambda: Linear(T=0), "T must be at least 1, got 0"),
        (lambda: Constant(value=1.0), r"value must be in \(0, 1\), got 1.0"),
        (lambda: Cosine(s=-1), "s must be at least 0, got -1"),
        (lambda: Cosine(beta_max=2), r"beta_max must be in \(0, 1\], got 2"),
        (lambda: Sigmoid(range=0), "range must be positive, got 0"),
        (lambda: WarmUp(fraction=0), r"fraction must be in \(0, 1\], got 0"),
    ],
)
def test_values_out_of_range_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
