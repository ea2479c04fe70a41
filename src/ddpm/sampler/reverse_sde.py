"""Euler-Maruyama on the reverse-time variance-preserving SDE, Song et al. 2021, Eq. 6."""

from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Prediction
from ddpm.sampler.base import Noise, Sampler, State


def reverse_step(chain: Diffusion, at: Prediction, step: int, noise: Noise) -> Tensor:
    """x' = x + B (1/2 x + score) + sqrt(B) z, with B the integral of beta over the step; the last step omits z."""
    log_alpha_bar = chain.process.log_alpha_bar
    length = log_alpha_bar[step - 1] - log_alpha_bar[step]
    mean = at.x_t + length * (0.5 * at.x_t + at.score)
    return mean + length.sqrt() * noise(step) if step > 1 else mean


class ReverseSDE(Sampler):
    """Steps of the reverse SDE from t = T down to 0."""

    needs_signal = True

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        return reverse_step(chain, at, step, noise)
