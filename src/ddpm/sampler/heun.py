"""Heun's method on the probability-flow ODE, Karras et al. 2022, Algorithm 1."""

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction
from ddpm.sampler.base import Noise, Sampler, State


class Heun(Sampler):
    """dz / ds = eps for z = x / sqrt(alpha_bar) and s = sigma / sqrt(alpha_bar).

    Evaluates the network twice per step, and once in the last step.
    """

    needs_signal = True

    def __init__(self, steps: int | None = None, clip: Clip = True, spacing: str = "karras") -> None:
        super().__init__(steps, clip, spacing)

    def evaluations(self, T: int) -> int:
        return 2 * T - 1

    @property
    def deterministic(self) -> bool:
        return True

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        if step == 1:
            return at.x_0
        alpha, sigma = chain.process.sqrt_alpha_bar, chain.process.sigma
        z = at.x_t / alpha[step]
        length = sigma[step - 1] / alpha[step - 1] - sigma[step] / alpha[step]
        euler = alpha[step - 1] * (z + length * at.eps)
        after = chain.predict(euler, torch.full_like(at.t, step - 1), self.clip)
        return alpha[step - 1] * (z + length * 0.5 * (at.eps + after.eps))
