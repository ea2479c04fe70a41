"""Predictor-corrector sampling, Song et al. 2021, Algorithms 1 and 5."""

import math

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction
from ddpm.sampler.base import Noise, Sampler, State
from ddpm.sampler.reverse_sde import reverse_step


class PredictorCorrector(Sampler):
    """A step of the reverse SDE, then Langevin steps at the time reached,

        x <- x + e score + sqrt(2 e) z,    e = 2 alpha_t (r |z| / |score|)^2,

    with norms per image, so that samples do not depend on their batch.

    Args:
        corrections: Langevin steps per step, >= 1.
        snr: r, > 0.
        others: as in `Sampler`.
    """

    needs_signal = True

    def __init__(
        self,
        steps: int | None = None,
        clip: Clip = True,
        spacing: str = "uniform",
        corrections: int = 1,
        snr: float = 0.01,
    ) -> None:
        super().__init__(steps, clip, spacing)
        if corrections < 1 or not 0 < snr < math.inf:
            raise ValueError(f"corrections must be at least 1 and snr above 0, got {corrections} and {snr}")
        self.corrections = corrections
        self.snr = snr

    def evaluations(self, T: int) -> int:
        return T + self.corrections * (T - 1)

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        x = reverse_step(chain, at, step, noise)
        if step == 1:
            return x
        alpha = chain.process.sqrt_alpha[step - 1] ** 2
        t = torch.full_like(at.t, step - 1)
        for k in range(1, self.corrections + 1):
            score, z = chain.predict(x, t, self.clip).score, noise(k * chain.T + step)
            ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
            # A zero score, such as an untrained network's, moves nothing.
            ratio = torch.where(ratio.isfinite(), ratio, 0).reshape(-1, *(1,) * (x.ndim - 1))
            length = 2 * alpha * (self.snr * ratio) ** 2
            x = x + length * score + (2 * length).sqrt() * z
        return x
