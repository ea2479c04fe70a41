"""Multistep DPM-Solver++ of order 1 or 2, Lu et al. 2022, and its form for the reverse SDE."""

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip, Prediction
from ddpm.sampler.base import Noise, Sampler, State


class DPMSolver(Sampler):
    """Exponential integrator over lambda = log(sqrt(alpha_bar) / sigma), with step h and alpha = sqrt(alpha_bar).

        x' = (sigma' / sigma) x - alpha' (e^-h - 1) D                                       the ODE, Algorithm 2
        x' = (sigma' / sigma) e^-h x + alpha' (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) z      the SDE

    D is x^_0 (order 1), or x^_0 extrapolated by half a step from the previous step (order 2).

    Args:
        order: 1 or 2.
        stochastic: solve the SDE instead of the ODE.
        others: as in `Sampler`.
    """

    def __init__(
        self,
        steps: int | None = None,
        clip: Clip = True,
        spacing: str = "log_snr",
        order: int = 2,
        stochastic: bool = False,
    ) -> None:
        super().__init__(steps, clip, spacing)
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order}")
        self.order = order
        self.stochastic = stochastic

    @property
    def deterministic(self) -> bool:
        return not self.stochastic

    def move(self, chain: Diffusion, at: Prediction, step: int, noise: Noise, before: State | None) -> Tensor:
        if step == 1:
            return at.x_0  # sigma' = 0
        process = chain.process
        log_snr = process.lambda_t
        h = 0.5 * (log_snr[step - 1] - log_snr[step])
        alpha, sigma = process.sqrt_alpha_bar[step - 1], process.sigma[step - 1]
        decay = sigma / process.sigma[step]
        x_0 = at.x_0
        if self.order == 2 and before is not None:
            h_before = 0.5 * (log_snr[step] - log_snr[step + 1])
            x_0 = x_0 + 0.5 * h / h_before * (x_0 - before.x_0)
        if self.stochastic:
            fresh = -torch.expm1(-2 * h)
            return decay * torch.exp(-h) * at.x_t + alpha * fresh * x_0 + sigma * fresh.sqrt() * noise(step)
        return decay * at.x_t - alpha * torch.expm1(-h) * x_0
