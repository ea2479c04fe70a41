"""What the network predicts: an affine function of x_0 and x_t.

The target is y_t = a_t x_0 + b_t x_t with a_t != 0, so that everything else follows once from (a, b):

    x^_0 = (y - b x_t) / a
    mean = c_0 x^_0 + c_t x_t = (c_0 / a) y + (c_t - (c_0 / a) b) x_t
    y'   = (a' / a) y + (b' - (a' / a) b) x_t        in another parameterization

Coefficients are composed in float64: passing through x^_0 in float32 would cost a mu prediction 1e-3 near t = T.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.process import Process
from ddpm.tables import Affine, over_time


class Parameterization(ABC):
    """y_t = a_t x_0 + b_t x_t."""

    @abstractmethod
    def coefficients(self, process: Process) -> tuple[Tensor, Tensor]:
        """a_t and b_t for t = 1..T of an original (not respaced) process, float64, each of shape (T,)."""

    def tables(self, process: Process) -> tuple[Tensor, Tensor]:
        """a and b over the times 0..T of `process`, read from the process that the network was trained on."""
        a, b = self.coefficients(process.origin)
        return over_time(a)[process.times], over_time(b)[process.times]

    def to(self, other: "Parameterization", process: Process) -> Affine:
        """(y, x_t) -> y', this prediction expressed in another parameterization."""
        (a, b), (a_other, b_other) = self.tables(process), other.tables(process)
        ratio = a_other / a
        return Affine(ratio, b_other - ratio * b)

    def to_mean(self, process: Process) -> Affine:
        """(y, x_t) -> the mean of p(x_{t-1} | x_t)."""
        a, b = self.tables(process)
        ratio = process.c_0 / a
        return Affine(ratio, process.c_t - ratio * b)
