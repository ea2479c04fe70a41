"""Ancestral sampling, Ho et al. 2020, Algorithm 2."""

from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Prediction
from ddpm.sampler.base import Noise, Sampler, State


class Ancestral(Sampler):
    """x_{t-1} ~ p(x_{t-1} | x_t) for t = T, ..., 1; the last step returns the mean."""

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        return at.p.sample(noise(step)) if step > 1 else at.p.mean
