"""The variance-preserving SDE with the marginals of a chain, Song et al. 2021, section 3.4.

    dx = -1/2 beta(s) x ds + sqrt(beta(s)) dw,    s = t / T in [0, 1]

On the step from (i - 1) / T to i / T, beta(s) = -T log(1 - beta_i), which is T beta_i to first order and makes
alpha_bar(s) = exp(-integral of beta from 0 to s) equal to alpha_bar_i at s = i / T exactly.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.chain.gaussian import Gaussian
from ddpm.chain.process import Process


class VPSDE:
    """Drift, diffusion and marginals of the forward SDE; drifts of the reverse SDE and the probability-flow ODE.

    Args:
        process: the chain.
    Raises:
        ValueError: beta_T = 1, which no SDE reaches.
    """

    def __init__(self, process: Process) -> None:
        if process.zero_terminal_snr:
            raise ValueError("no SDE has a terminal SNR of zero (beta_T = 1): its beta would be infinite")
        self.T = process.T
        self.ends = torch.arange(self.T + 1, dtype=torch.float64, device=process.times.device) / self.T
        self.log_alpha_bar = process.log_alpha_bar

    def beta(self, s: Tensor) -> Tensor:
        """beta(s) for s in (0, 1], float64, shape of s; constant on each step ((i - 1) / T, i / T] of the chain."""
        i = torch.searchsorted(self.ends.to(s.dtype), s).clamp(1, self.T)
        return self.T * (self.log_alpha_bar[i - 1] - self.log_alpha_bar[i])

    def drift(self, x: Tensor, s: Tensor) -> Tensor:
        """-1/2 beta(s) x; s of shape (B,)."""
        return -0.5 * self._like(self.beta(s), x) * x

    def diffusion(self, x: Tensor, s: Tensor) -> Tensor:
        """sqrt(beta(s)), broadcastable to x; s of shape (B,)."""
        return self._like(self.beta(s), x).sqrt()

    def reverse_drift(self, x: Tensor, s: Tensor, score: Tensor) -> Tensor:
        """-1/2 beta x - beta score, the drift backwards in time (Eq. 6)."""
        return self.drift(x, s) - self._like(self.beta(s), x) * score

    def flow(self, x: Tensor, s: Tensor, score: Tensor) -> Tensor:
        """-1/2 beta x - 1/2 beta score, the velocity of the probability-flow ODE (Eq. 13)."""
        return self.drift(x, s) - 0.5 * self._like(self.beta(s), x) * score

    def marginal(self, x_0: Tensor, s: Tensor) -> Gaussian:
        """q(x(s) | x_0) = N(sqrt(alpha_bar(s)) x_0, (1 - alpha_bar(s)) I) for s in (0, 1], shape (B,)."""
        below = (s.double() * self.T).floor().long().clamp(0, self.T - 1)
        part = s.double() * self.T - below
        log_alpha_bar = torch.lerp(self.log_alpha_bar[below], self.log_alpha_bar[below + 1], part)
        variance = -torch.expm1(log_alpha_bar)
        return Gaussian(self._like((0.5 * log_alpha_bar).exp(), x_0) * x_0, self._like(variance.log(), x_0))

    def simulate(self, x_0: Tensor, steps: int, noise: Callable[[int], Tensor], until: float = 1.0) -> Tensor:
        """Simulate from x_0 to x(until) by Euler-Maruyama.

        Args:
            x_0: shape (B, ...).
            steps: number of equal steps, >= 1.
            noise: step 1..steps -> standard normal, shape of x_0.
            until: final s, in (0, 1].
        """
        x, length = x_0, until / steps
        for step in range(1, steps + 1):
            s = torch.full((len(x),), (step - 0.5) * length, dtype=torch.float64, device=x.device)
            x = x + length * self.drift(x, s) + length**0.5 * self.diffusion(x, s) * noise(step)
        return x

    @staticmethod
    def _like(values: Tensor, x: Tensor) -> Tensor:
        return values.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
