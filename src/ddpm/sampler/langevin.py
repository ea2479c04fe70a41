"""Annealed Langevin dynamics, Song & Ermon 2019, Algorithm 1, with the scores of the model."""

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction
from ddpm.sampler.base import Noise, Sampler, State


class Langevin(Sampler):
    """Langevin steps at each time, on z = x / sqrt(alpha_bar) with noise level s = sigma / sqrt(alpha_bar):

        z <- z + r s^2 / 2 score_z + sqrt(r) s w,    score_z = -eps / s,

    and x^_0 at the end. There is no predictor: it uses only the scores, the link to denoising score matching.

    Args:
        inner: Langevin steps per time, >= 1.
        rate: r, in (0, 2).
        others: as in `Sampler`.
    """

    needs_signal = True

    def __init__(
        self,
        steps: int | None = None,
        clip: Clip = True,
        spacing: str = "log_snr",
        inner: int = 5,
        rate: float = 0.3,
    ) -> None:
        super().__init__(steps, clip, spacing)
        if inner < 1 or not 0 < rate < 2:
            raise ValueError(f"inner must be at least 1 and rate in (0, 2), got {inner} and {rate}")
        self.inner = inner
        self.rate = rate

    def evaluations(self, T: int) -> int:
        return self.inner * T + 1

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        alpha, sigma = chain.process.sqrt_alpha_bar, chain.process.sigma
        for k in range(self.inner):
            z = noise(k * chain.T + step)
            x = at.x_t - 0.5 * self.rate * sigma[step] * at.eps + self.rate**0.5 * sigma[step] * z
            if k < self.inner - 1 or step == 1:
                at = chain.predict(x, torch.full_like(at.t, step), self.clip)
        return x * (alpha[step - 1] / alpha[step]) if step > 1 else at.x_0
