"""What the network predicts: an affine function of x_0 and x_t.

The target is y_t = a_t x_0 + b_t x_t with a_t != 0. Everything else follows from (a, b):

    x^_0 = (y - b x_t) / a
    mean = c_0 x^_0 + c_t x_t = (c_0 / a) y + (c_t - (c_0 / a) b) x_t
    y'   = (a' / a) y + (b' - (a' / a) b) x_t        in another parameterization

Coefficients are composed in float64: going through x^_0 in float32 would cost a mu prediction 1e-3 near t = T.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.chain.process import Coefficients, Process
from ddpm.chain.tables import Affine, over_time


class Parameterization(ABC):
    """y_t = a_t x_0 + b_t x_t."""

    is_mean: bool = False
    """Whether y_t is the mean of p(x_{t-1} | x_t)."""

    @abstractmethod
    def coefficients(self, at: Coefficients) -> tuple[Tensor, Tensor]:
        """a_t and b_t at S times, from the coefficients of the original process, float64, each of shape (S,)."""

    def c_in(self, t: Tensor, process: Process) -> Tensor | None:
        """Scale of x_t in the network's input (Karras et al. 2022, Eq. 7), shape of t; None for 1.

        Args:
            t: real times in [1, T] of the process, shape (B,) or (1,).
            process: the original process, which the network was trained on.
        """
        return None

    def c_noise(self, t: Tensor, process: Process) -> Tensor:
        """The network's time input: t - 1, as published weights expect. Arguments as in `c_in`."""
        return t - 1

    def check(self, process: Process) -> None:
        """Raise ValueError unless x^_0 can be computed in float32 at every time of a chain."""
        a, _ = self.coefficients(process.origin.coefficients(process.times[1:]))
        lost = ~(1 / a.float()).isfinite()
        if lost.any():
            t = int(lost.nonzero()[0]) + 1
            name = type(self).__name__.lower()
            raise ValueError(
                f"parameterization={name} cannot recover the image at t = {float(process.times[t]):g}, where x_t is "
                f"pure noise (alpha_bar = {process.alpha_bar[t]:.3g}); choose parameterization=v or x0, or a "
                f"schedule that keeps more of the image, with a smaller beta_T or beta_max"
            )

    def map_to(self, other: "Parameterization", at: Coefficients) -> tuple[Tensor, Tensor]:
        """k_y and k_x of y' = k_y y + k_x x_t, which converts to another parameterization, each of shape (S,)."""
        (a, b), (a_other, b_other) = self.coefficients(at), other.coefficients(at)
        ratio = a_other / a
        return ratio, b_other - ratio * b

    def to(self, other: "Parameterization", process: Process) -> Affine:
        """The map (y, x_t) -> y' at the times of a chain, with the coefficients of the original process."""
        k_y, k_x = self.map_to(other, process.origin.coefficients(process.times[1:]))
        return Affine(over_time(k_y), over_time(k_x))

    def to_mean(self, process: Process) -> Affine:
        """The map (y, x_t) -> mean of p(x_{t-1} | x_t)."""
        a, b = self.coefficients(process.origin.coefficients(process.times[1:]))
        ratio = process.c_0[1:] / a
        return Affine(over_time(ratio), over_time(process.c_t[1:] - ratio * b))
