"""From noise to images."""

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
"""Step -> standard normal, shape (B, C, H, W); no step is drawn twice. x_T is that of step 0, for any T."""


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
        steps: length of the chain, at most the trained one; None for as many.
        clip: clip x^_0 to [-1, 1]; or "published", but not the mean that a mu model predicts; or a quantile in (0, 1),
            such as 0.995, for dynamic thresholding (see `Prediction`).
        spacing: which times the chain visits, a name in `spacing.SPACINGS`.
    """

    needs_signal: bool = False
    """Whether the first step is infinite where x_T is noise alone, alpha_bar_T = 0."""

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
        """Whether x_T alone decides the sample."""
        return False

    @abstractmethod
    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        """From x_step to x_{step-1}.

        Args:
            chain: the model on the chain that is sampled.
            at: the prediction at x_step, `at.x_t`.
            step: time in the chain, T..1.
            noise: may be drawn at `step`; at T + step, 2 T + step, ... too if one draw is not enough.
            before: the state that x_step was reached with; None at the start.
        """

    def evaluations(self, T: int) -> int:
        """Evaluations of the network for a chain of T steps."""
        return T

    def trajectory(
        self, diffusion: Diffusion, noise: Noise, start: tuple[int, Tensor] | None = None
    ) -> Iterator[State]:
        """The states after each step, from the noisiest to step 0.

        Args:
            diffusion: the model, in evaluation mode.
            noise: step -> standard normal, shape (B, C, H, W).
            start: a time of the sampler's chain and the noisy images there; None for pure noise at T.
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
        """Samples, about in [-1, 1], shape (B, C, H, W).

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
        """Raises ValueError unless the chain's last SNR is one to start from."""
        if self.needs_signal and process.zero_terminal_snr:
            raise ValueError(
                f"{type(self).__name__} cannot start from a terminal SNR of zero (beta_T = 1), where its first step is "
                f"infinite; choose sampler=ancestral, ddim or dpm_solver"
            )

    def chain(self, diffusion: Diffusion) -> Diffusion:
        """The model on the chain that is sampled."""
        self.check(diffusion.process)
        if self.steps is None and self.spacing == "uniform":
            return diffusion
        times = spacing.SPACINGS[self.spacing](diffusion.process, self.steps or diffusion.T)
        return diffusion.respace(times)


def check_spacing(name: str) -> None:
    """Raises ValueError unless there is such a spacing."""
    if name not in spacing.SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(spacing.SPACINGS)}, got {name!r}")
