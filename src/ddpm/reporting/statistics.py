"""Means over seeds, and whether two of them differ.

With values x_1, ..., x_n of n seeds, mean m and sample variance s^2 (divisor n - 1):

    standard error          s / sqrt(n)
    paired difference       the same of x_i - y_i over common seeds, Student t with n - 1 degrees of freedom
    difference of Welch     m_x - m_y with error sqrt(s_x^2 / n_x + s_y^2 / n_y), and with a = s_x^2 / n_x and
                            b = s_y^2 / n_y (a + b)^2 / (a^2 / (n_x - 1) + b^2 / (n_y - 1)) degrees of freedom

Welch 1947, *The generalization of Student's problem when several different population variances are involved*. All in
float64, in the unit of the values.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
"""Confidence of the two-sided tests."""


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: of the values.
        error: standard error of the mean; None for one value, which has none.
        n: number of values.
    """

    mean: float
    error: float | None
    n: int


class Difference(NamedTuple):
    """A difference of two means.

    Attributes:
        mean: the difference.
        error: its standard error.
        dof: degrees of freedom of Student's t.
        paired: whether it is a mean of differences of the same seeds.
    """

    mean: float
    error: float
    dof: float
    paired: bool

    @property
    def margin(self) -> float:
        """Half the width of the two-sided confidence interval."""
        return float(student.ppf((1 + LEVEL) / 2, self.dof)) * self.error

    @property
    def significant(self) -> bool:
        """Whether the confidence interval leaves zero out."""
        return abs(self.mean) > self.margin


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of at least one value."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(float(np.mean(values)), error, n)


def difference(x: Mapping[int, float], y: Mapping[int, float]) -> Difference | None:
    """The mean of x minus that of y: paired if both have the same seeds, else Welch's.

    Args:
        x: a value for each seed.
        y: the same.
    Returns:
        None if one of them has a single seed, from which no error can be estimated.
    """
    if min(len(x), len(y)) < 2:
        return None
    if x.keys() == y.keys():
        mean, error, n = estimate([x[seed] - y[seed] for seed in x])
        assert error is not None
        return Difference(mean, error, n - 1, True)
    ours, theirs = estimate([*x.values()]), estimate([*y.values()])
    assert ours.error is not None
    assert theirs.error is not None
    a, b = ours.error**2, theirs.error**2
    # where no value varies, any number of degrees of freedom gives the same interval, a point
    dof = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1)) if a + b > 0 else 1.0
    return Difference(ours.mean - theirs.mean, math.sqrt(a + b), dof, False)


def shown(mean: float, error: float | None) -> str:
    """A value and its error with matching digits, as in 3.42 ± 0.05.

    The error keeps two significant digits if they are below 30, else one. A value without an error keeps four.
    """
    if error == 0:
        return f"{shown(mean, None)} ± 0"
    size = max(abs(mean), error or 0)
    if size == 0:
        return "0"
    exponent = math.floor(math.log10(size))
    if exponent < -3 or exponent > 6:
        scale = 10.0**exponent
        scaled = shown(mean / scale, None if error is None else error / scale)
        return f"{scaled}e{exponent}" if error is None else f"({scaled})e{exponent}"
    if error is None:
        return f"{mean:,.{max(0, 3 - exponent)}f}"
    first = math.floor(math.log10(error))
    digits = max(0, (1 if error / 10.0**first < 2.95 else 0) - first)
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"
