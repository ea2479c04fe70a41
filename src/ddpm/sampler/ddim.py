"""Denoising diffusion implicit models, Song, Meng & Ermon 2021."""

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction
from ddpm.sampler.base import Noise, Sampler, State


class DDIM(Sampler):
    """x_{t-1} = sqrt(alpha_bar') x^_0 + sqrt(1 - alpha_bar' - s^2) eps + s z, s^2 = eta^2 beta_tilde_t (Eq. 12).

    eta = 0 is deterministic; eta = 1 is ancestral sampling with fixed_small.

    Args:
        eta: in [0, 1].
        others: as in `Sampler`.
    """

    def __init__(self, steps: int | None = None, clip: Clip = True, spacing: str = "uniform", eta: float = 0.0) -> None:
        super().__init__(steps, clip, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}; 0 is deterministic, 1 ancestral")
        self.eta = eta

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        if step == 1:
            return at.x_0
        process = chain.process
        s = self.eta * (0.5 * process.log_beta_tilde[step]).exp()
        # 1 - alpha_bar' - s^2, without cancellation at eta = 1.
        deterministic, ancestral = process.sigma[step - 1], process.c_t[step] * process.sigma[step]
        along = torch.lerp(deterministic**2, ancestral**2, self.eta**2).sqrt()
        x = process.sqrt_alpha_bar[step - 1] * at.x_0 + along * at.eps
        return x + s * noise(step) if self.eta > 0 else x
