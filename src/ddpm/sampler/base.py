"""Samplers, which turn noise into images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.chain import spacing
from ddpm.chain.process import Process
from ddpm.chain.tables import same
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction, check_clip

Noise = Callable[[int], Tensor]
"""Step -> standard normal, shape (B, C, H, W); no step is drawn twice. Step 0 gives x_T, for any T."""


class State(NamedTuple):
    """One point of a trajectory.

    Attributes:
        step: time of x in the sampler's chain; 0 is the finished sample.
        x: shape (B, C, H, W).
        x_0: the clean image predicted in the step to x, shape (B, C, H, W).
    """

    step: int
    x: Tensor
    x_0: Tensor


class Sampler(ABC):
    """Draws samples from a Diffusion with any parameterization and variance.

    Args:
        steps: number of steps, at most that of the trained chain; None for the whole chain.
        clip: clip x^_0 to [-1, 1]; or "published", which leaves a predicted mean unclipped; or a quantile in (0, 1),
            such as 0.995, for dynamic thresholding (see `Prediction`).
        spacing: spacing of the visited times, a key of `spacing.SPACINGS`.
    """

    needs_signal: bool = False
    """Whether the first step is infinite if x_T is pure noise, alpha_bar_T = 0."""

    def __init__(self, steps: int | None = None, clip: Clip = True, spacing: str = "uniform") -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or null for the whole chain, got {steps}")
        check_spacing(spacing)
        check_clip("sampler.clip", clip)
        self.steps = steps
        self.clip = clip
        self.spacing = spacing

    @property
    def deterministic(self) -> bool:
        """Whether x_T determines the sample."""
        return False

    @abstractmethod
    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        """Move from x_step to x_{step-1}.

        Args:
            chain: the model on the sampled chain.
            at: the prediction at x_step, `at.x_t`.
            step: time in the chain, T..1.
            noise: drawn at `step`, and at T + step, 2 T + step, ... if one draw is not enough.
            before: the state after the previous step; None at the start.
        """

    def evaluations(self, T: int) -> int:
        """Network evaluations for a chain of T steps."""
        return T

    def trajectory(
        self, diffusion: Diffusion, noise: Noise, start: tuple[int, Tensor] | None = None
    ) -> Iterator[State]:
        """Yield the state after each step, down to step 0.

        Args:
            diffusion: the model, in evaluation mode.
            noise: step -> standard normal, shape (B, C, H, W).
            start: a time in the sampler's chain and the noisy images at it; None for pure noise at T.
        """
        chain = self.chain(diffusion)
        first, x = start or (chain.T, noise(0))
        state = None
        for step in range(first, 0, -1):
            at = chain.predict(x, same(step, x), self.clip)
            x = self.move(chain, at, step, noise, state)
            state = State(step - 1, x, at.x_0)
            yield state

    @torch.inference_mode()
    def sample(
        self,
        diffusion: Diffusion,
        noise: Noise,
        on_step: Callable[[], None] = lambda: None,
        start: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Draw samples, approximately in [-1, 1], shape (B, C, H, W).

        Args:
            diffusion: the model, in evaluation mode.
            noise: step -> standard normal, shape (B, C, H, W).
            on_step: called after each step.
            start: as in `trajectory`.
        """
        for state in self.trajectory(diffusion, noise, start):
            on_step()
            x = state.x
        return x

    def check(self, process: Process) -> None:
        """Raise ValueError unless the sampler can start from the chain's terminal SNR."""
        if self.needs_signal and process.zero_terminal_snr:
            raise ValueError(
                f"{type(self).__name__} cannot start from a terminal SNR of zero (beta_T = 1), where its first step is "
                f"infinite; choose sampler=ancestral, ddim or dpm_solver"
            )

    def chain(self, diffusion: Diffusion) -> Diffusion:
        """The model on the sampled chain."""
        self.check(diffusion.process)
        if self.steps is None and self.spacing == "uniform":
            return diffusion
        times = spacing.SPACINGS[self.spacing](diffusion.process, self.steps or diffusion.T)
        return diffusion.respace(times)


def check_spacing(name: str) -> None:
    """Raise ValueError unless a spacing of this name exists."""
    if name not in spacing.SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(spacing.SPACINGS)}, got {name!r}")
