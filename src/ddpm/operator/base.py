"""Measurements of images: y = A(x) + sigma n."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Operator(ABC):
    """A differentiable map A from images in [-1, 1], shape (B, C, H, W), to measurements, shape (B, ...)."""

    linear: bool = False
    """Whether A(a x + b x') = a A(x) + b A(x')."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x)."""

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027 (most operators measure any image)
        """Raise ValueError unless images of this shape, (C, H, W), can be measured."""

    def picture(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """Measurements as images for display, shape (B, C, H, W)."""
        return torch.nn.functional.interpolate(y.expand(-1, shape[0], -1, -1), size=tuple(shape[1:]), mode="nearest")


class LinearOperator(Operator):
    """A linear A, whose adjoint comes from automatic differentiation."""

    linear = True

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint A' y, with <A x, y> = <x, A' y>.

        Args:
            y: measurements, shape (B, ...).
            shape: shape of an image, (C, H, W).
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (found,) = torch.autograd.grad(self(x), x, y.clone())
        return found


@dataclass(frozen=True)
class Measurement:
    """The measurements of a batch of images.

    Attributes:
        operator: A.
        y: A(x) + sigma n, shape (B, ...).
        sigma: standard deviation of the noise, >= 0.
    """

    operator: Operator
    y: Tensor
    sigma: float

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x)."""
        return self.y - self.operator(x)


def linear(measurement: Measurement) -> LinearOperator:
    """The operator of a measurement, checked to be linear.

    Raises:
        ValueError: the operator is not linear.
    """
    if not isinstance(measurement.operator, LinearOperator):
        raise ValueError("this solver needs a linear operator; choose solver=dps for a nonlinear one")
    return measurement.operator
