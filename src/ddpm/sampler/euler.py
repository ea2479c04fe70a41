"""Euler's method on the probability-flow ODE, Song et al. 2021, section 4.3."""

from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Prediction
from ddpm.sampler.base import Noise, Sampler, State


class Euler(Sampler):
    """x' = x + 1/2 B (x + score), with B the integral of beta over the step: log(alpha_bar' / alpha_bar)."""

    needs_signal = True

    @property
    def deterministic(self) -> bool:
        return True

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        log_alpha_bar = chain.process.log_alpha_bar
        return at.x_t + 0.5 * (log_alpha_bar[step - 1] - log_alpha_bar[step]) * (at.x_t + at.score)
