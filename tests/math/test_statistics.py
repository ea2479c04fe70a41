"""Means over seeds, their errors and their differences, against SciPy's tests and closed forms."""

import numpy as np
import pytest
from scipy import stats

from ddpm.reporting.statistics import difference, estimate, shown

X = {0: 3.1, 1: 3.4, 2: 2.9, 3: 3.3}
Y = {0: 3.3, 1: 3.5, 2: 3.2, 3: 3.4}
OTHERS = {7: 3.6, 8: 4.1, 9: 3.0}


def test_the_error_of_a_mean_is_scipys_and_one_value_has_none():
    values = [*X.values()]
    assert estimate(values) == pytest.approx((np.mean(values), stats.sem(values), 4), rel=1e-14)
    assert estimate([2.0]) == (2.0, None, 1)


def test_the_same_seeds_are_paired_in_any_order():
    found = difference(X, dict(reversed(Y.items())))
    expected = stats.ttest_rel([*X.values()], [*Y.values()])
    low, high = expected.confidence_interval(0.95)
    assert found.paired
    assert found.dof == expected.df
    assert found.mean / found.error == pytest.approx(expected.statistic, rel=1e-12)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high), rel=1e-12)
    assert found.significant == (expected.pvalue < 0.05)


def test_other_seeds_are_compared_by_welchs_test():
    found = difference(X, OTHERS)
    expected = stats.ttest_ind([*X.values()], [*OTHERS.values()], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert not found.paired
    assert found.dof == pytest.approx(expected.df, rel=1e-12)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high), rel=1e-12)


def test_a_single_seed_can_neither_be_compared_nor_compared_with():
    assert difference(X, {0: 1.0}) is None
    assert difference({0: 1.0}, X) is None


def test_pairing_sees_a_shift_that_is_smaller_than_the_spread_of_the_seeds():
    rng = np.random.default_rng(0)
    spread = dict(enumerate(rng.normal(0, 10, 8)))
    shifted = {seed: value + 1 + rng.normal(0, 0.1) for seed, value in spread.items()}
    assert difference(shifted, spread).significant
    assert not difference({seed + 100: value for seed, value in shifted.items()}, spread).significant


def test_values_without_spread_differ_unless_they_are_equal():
    assert difference({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}).significant
    assert not difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).significant
    assert difference({0: 1.0, 1: 1.0}, {2: 2.0, 3: 2.0}).significant


@pytest.mark.parametrize("shift", [0, 100])
def test_one_equal_pair_in_twenty_is_told_apart(shift):
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(2000, 2, 4))
    told = [difference(dict(enumerate(x)), dict(enumerate(y, shift))).significant for x, y in draws]
    assert 0.03 < np.mean(told) < 0.07


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [
        (3.4157, 0.0512, "3.42 ± 0.05"),
        (3.4016, 0.0184, "3.402 ± 0.018"),
        (32.33, 0.71, "32.3 ± 0.7"),
        (10.823, 0.182, "10.82 ± 0.18"),
        (3.4, 0.0999, "3.40 ± 0.10"),
        (1234.5, 12.3, "1,234 ± 12"),
        (150.2, 47.1, "150 ± 47"),
        (0.2, 1.26, "0.2 ± 1.3"),
        (3.4157, 0.0, "3.416 ± 0"),
        (3.4157, None, "3.416"),
        (0.094620, None, "0.09462"),
        (1234.56, None, "1,235"),
        (2.0857e-5, None, "2.086e-5"),
        (2.0857e-5, 1.9e-6, "(2.09 ± 0.19)e-5"),
        (-0.31, 0.04, "-0.31 ± 0.04"),
        (0.0, None, "0"),
        (0.0, 0.03, "0.00 ± 0.03"),
    ],
)
def test_a_value_is_shown_to_the_digits_of_its_error(mean, error, expected):
    assert shown(mean, error) == expected
