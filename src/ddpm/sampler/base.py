"""From noise to images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import Diffusion


class State(NamedTuple):
    """One point of a trajectory.

    Attributes:
        step: time of x in the sampler's chain; 0 is the finished sample.
        x: shape (B, C, H, W).
        x_0: the clean image predicted on the way to x, shape (B, C, H, W).
    """

    step: int
    x: Tensor
    x_0: Tensor


class Sampler(ABC):
    """Draws samples with the readings of a Diffusion, whatever its parameterization and variance.

    Args:
        steps: length of the chain, at most the trained one; None for all of it.
        clip: clip x^_0 to [-1, 1].
    """

    def __init__(self, steps: int | None = None, clip: bool = True) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or null for the whole chain, got {steps}")
        self.steps = steps
        self.clip = clip

    @abstractmethod
    def trajectory(self, diffusion: Diffusion, noise: Callable[[int], Tensor]) -> Iterator[State]:
        """The states after each step, from the noisiest to step 0.

        Args:
            diffusion: the model, in evaluation mode.
            noise: step -> standard normal, shape (B, C, H, W); each step is drawn once, x_T from step T + 1.
        """

    @torch.inference_mode()
    def sample(
        self,
        diffusion: Diffusion,
        noise: Callable[[int], Tensor],
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Samples, about in [-1, 1], shape (B, C, H, W).

        Args:
            diffusion: the model, in evaluation mode.
            noise: step -> standard normal, shape (B, C, H, W).
            on_step: called after each step.
        """
        for state in self.trajectory(diffusion, noise):
            on_step()
            x = state.x
        return x

    def chain(self, diffusion: Diffusion) -> Diffusion:
        """The model on the chain that is sampled."""
        return diffusion if self.steps is None else diffusion.respace(self.steps)
