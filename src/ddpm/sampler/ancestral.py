"""Ancestral sampling, Ho et al. 2020, Algorithm 2."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.sampler.base import Sampler, State


class Ancestral(Sampler):
    """x_{t-1} ~ p(x_{t-1} | x_t) from t = T down to 1; the last step takes the mean."""

    def trajectory(self, diffusion: Diffusion, noise: Callable[[int], Tensor]) -> Iterator[State]:
        chain = self.chain(diffusion)
        x = noise(chain.T + 1)
        for step in range(chain.T, 0, -1):
            prediction = chain.predict(x, torch.full((len(x),), step, device=x.device), self.clip)
            x = prediction.p.sample(noise(step)) if step > 1 else prediction.p.mean
            yield State(step - 1, x, prediction.x_0)
