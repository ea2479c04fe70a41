"""Training losses."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Prediction


class Loss(ABC):
    """A loss per image at a given time."""

    trains_variance: bool = False
    """Whether a learned variance receives gradients."""
    needs_learned_variance: bool = False
    """Whether part of the loss has no effect with a fixed variance."""

    @abstractmethod
    def __call__(self, prediction: Prediction, x_0: Tensor) -> Tensor:
        """Loss per image, shape (B,).

        Args:
            prediction: the model's prediction at x_t ~ q(x_t | x_0).
            x_0: clean images in [-1, 1], shape (B, C, H, W).
        """

    def logged(self, losses: Tensor, T: int) -> Tensor:
        """Convert losses on a chain of T steps to the values to log, shape (B,)."""
        return losses


class WeightedError(Loss):
    """w_t ||y_t - y^_t||^2 in the network's own parameterization, averaged over dimensions."""

    @abstractmethod
    def weight(self, diffusion: Diffusion, t: Tensor) -> Tensor:
        """w_t in float64, shape (B,), for times t in 1..T, shape (B,)."""

    def __call__(self, prediction: Prediction, x_0: Tensor) -> Tensor:
        target = prediction.diffusion.target(x_0, prediction.x_t, prediction.t)
        error = ((prediction.y - target) ** 2).flatten(1).mean(1)
        return self.weight(prediction.diffusion, prediction.t).to(error.dtype) * error
