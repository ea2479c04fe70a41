"""What is measured of an image: y = A(x) + sigma n."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Operator(ABC):
    """A(x), differentiable; images in [-1, 1], shape (B, C, H, W), to measurements, shape (B, ...)."""

    linear: bool = False
    """Whether A(a x + b x') = a A(x) + b A(x')."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x)."""

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027 (most operators measure any image)
        """Raises ValueError unless images of this shape, (C, H, W), can be measured."""

    def picture(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """Measurements as images to look at, shape (B, C, H, W)."""
        return torch.nn.functional.interpolate(y.expand(-1, shape[0], -1, -1), size=tuple(shape[1:]), mode="nearest")


class LinearOperator(Operator):
    """A linear A, whose adjoint comes from differentiating it."""

    linear = True

    def adjoint(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """A' y, for which <A x, y> = <x, A' y>.

        Args:
            y: measurements, shape (B, ...).
            shape: of an image, (C, H, W).
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (found,) = torch.autograd.grad(self(x), x, y.clone())
        return found


@dataclass(frozen=True)
class Measurement:
    """What is known of a batch of images.

    Attributes:
        operator: A.
        y: A(x) + sigma n, shape (B, ...).
        sigma: standard deviation of the noise, at least 0.
    """

    operator: Operator
    y: Tensor
    sigma: float

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x)."""
        return self.y - self.operator(x)


def linear(measurement: Measurement) -> LinearOperator:
    """The operator of a solver that needs a linear one.

    Raises:
        ValueError: it is not linear.
    """
    if not isinstance(measurement.operator, LinearOperator):
        raise ValueError("this solver needs a linear operator; choose solver=dps for any other")
    return measurement.operator
