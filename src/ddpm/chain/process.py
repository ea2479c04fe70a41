"""The forward process q of Ho et al. 2020.

Times are 1..T with alpha_bar_0 = 1. Every table has length T + 1; index 0 is the clean image.

    symbol          name                                                         equation
    beta            variance added by one step                                   2
    alpha           1 - beta                                                     4
    alpha_bar       product of alpha up to t: signal variance kept               4
    sigma           sqrt(1 - alpha_bar): standard deviation of the noise in x_t  4
    c_0, c_t        coefficients of x_0 and x_t in the posterior mean mu_tilde   7
    beta_tilde      posterior variance                                           7
    snr             alpha_bar / (1 - alpha_bar)
    lambda_t        log snr
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.chain.gaussian import Gaussian
from ddpm.chain.tables import Tables, gather, over_time


class Coefficients(NamedTuple):
    """Coefficients of the original process at S times, float64, each of shape (S,)."""

    sqrt_alpha_bar: Tensor
    sigma: Tensor
    c_0: Tensor
    c_t: Tensor


class Process(Tables):
    """q for a chain of T steps.

    Args:
        beta: variances of the steps t = 1..T, in (0, 1), shape (T,), float64. beta_T may be 1, which makes x_T pure
            noise: zero terminal SNR (Lin et al. 2024).
        times: for a respaced chain, the original time of each of its times 0..T, integer or not, shape (T + 1,).
        origin: for a respaced chain, the process that the network was trained on.
        log_alpha: log(1 - beta), shape (T,), which is more precise where beta_t rounds to 1; None to compute it.

    Attributes:
        zero_terminal_snr: whether alpha_bar_T = 0.
    Raises:
        ValueError: a variance is outside (0, 1).
    """

    beta: Tensor
    alpha_bar: Tensor
    log_alpha_bar: Tensor
    sqrt_alpha: Tensor
    sqrt_alpha_bar: Tensor
    sigma: Tensor
    c_0: Tensor
    c_t: Tensor
    log_beta: Tensor
    log_beta_tilde: Tensor
    snr: Tensor
    lambda_t: Tensor
    times: Tensor

    def __init__(
        self,
        beta: Tensor,
        times: Tensor | None = None,
        origin: "Process | None" = None,
        log_alpha: Tensor | None = None,
    ) -> None:
        super().__init__()
        beta = beta.double()
        log_alpha = torch.log1p(-beta) if log_alpha is None else log_alpha.double()
        inside = (beta > 0) & (log_alpha < 0) & log_alpha.isfinite()
        inside[-1] |= beta[-1] == 1
        if not inside.all():
            t = int((~inside).nonzero()[0]) + 1
            raise ValueError(
                f"every beta_t must be in (0, 1), but beta_{t} = {beta[t - 1]:g} (only the last may be 1); "
                f"change the schedule's range"
            )
        self.T = len(beta)
        self.zero_terminal_snr = bool(log_alpha[-1] == -torch.inf)
        self.respaced_from = origin
        self.register_buffer("times", torch.arange(self.T + 1) if times is None else times, persistent=False)

        zero = beta.new_zeros(1)
        # Logarithms keep alpha_bar and 1 - alpha_bar precise at both ends.
        log_alpha_bar = torch.cat([zero, torch.cumsum(log_alpha, 0)])
        one_minus = -torch.expm1(log_alpha_bar)
        before, now = one_minus[:-1], one_minus[1:]
        beta_tilde = beta * before / now
        # beta~_1 = 0 is replaced by beta~_2 (in a chain of one step by beta_1) to keep log sigma^2 finite.
        beta_tilde[0] = beta_tilde[1] if self.T > 1 else beta[0]

        self.add_table("beta", torch.cat([zero, beta]))
        self.add_table("alpha_bar", log_alpha_bar.exp())
        self.add_table("log_alpha_bar", log_alpha_bar)
        self.add_table("sqrt_alpha", torch.cat([zero, 0.5 * log_alpha]).exp())
        self.add_table("sqrt_alpha_bar", (0.5 * log_alpha_bar).exp())
        self.add_table("sigma", one_minus.sqrt())
        self.add_table("c_0", over_time((0.5 * log_alpha_bar[:-1]).exp() * beta / now))
        self.add_table("c_t", over_time((0.5 * log_alpha).exp() * before / now))
        self.add_table("log_beta", over_time(beta.log()))
        self.add_table("log_beta_tilde", over_time(beta_tilde.log()))
        self.add_table("lambda_t", log_alpha_bar - one_minus.log())
        self.add_table("snr", self.lambda_t.exp())

    @property
    def origin(self) -> "Process":
        """The process that the network was trained on: this one unless respaced."""
        return self if self.respaced_from is None else self.respaced_from

    def log_snr(self, times: Tensor) -> Tensor:
        """Log-SNR lambda = log(alpha_bar / (1 - alpha_bar)) at real times in [0, T], float64, decreasing.

        lambda is linear between integer times. Where it is infinite at an end, another quantity is linear in the
        outermost interval: 1 - alpha_bar below t = 1, and alpha_bar above T - 1 for zero terminal SNR.
        """
        times = times.to(self.lambda_t)
        last = self.T - 1 if self.zero_terminal_snr else self.T
        below = times.floor().long().clamp(1, max(1, last - 1))
        later = torch.lerp(self.lambda_t[below], self.lambda_t[(below + 1).clamp(max=max(1, last))], times - below)
        found = torch.where(times >= 1, later, -_logit((times * self.sigma[1] ** 2).log()))
        if self.zero_terminal_snr:
            found = torch.where(times > last, _logit((self.T - times).log() + self.log_alpha_bar[last]), found)
        return found

    def time(self, log_snr: Tensor) -> Tensor:
        """Real time in [0, T] with the given log-SNR: the inverse of `log_snr`."""
        log_snr = log_snr.to(self.lambda_t)
        last = self.T - 1 if self.zero_terminal_snr else self.T
        table = self.lambda_t[1 : max(1, last) + 1]
        above = torch.searchsorted(-table, -log_snr).clamp(1, max(1, len(table) - 1))
        before, after = table[above - 1], table[above.clamp(max=len(table) - 1)]
        step = torch.where(after < before, after - before, -torch.ones_like(after))
        later = above + (log_snr - before) / step
        found = torch.where(log_snr > table[0], torch.sigmoid(-log_snr) / self.sigma[1] ** 2, later)
        if self.zero_terminal_snr:
            left = (F.logsigmoid(log_snr) - self.log_alpha_bar[last]).exp()
            found = torch.where(log_snr < self.lambda_t[last], self.T - left, found)
        return found.clamp(max=self.T)

    def coefficients(self, times: Tensor) -> Coefficients:
        """Coefficients at real times in (0, T], shape (S,), interpolated by `log_snr`.

        c_0 and c_t belong to the step from max(t - 1, 0) to t.
        """
        now, before = self.log_snr(times), self.log_snr((times.double() - 1).clamp(min=0))
        log_alpha_bar, log_alpha_bar_before = F.logsigmoid(now), F.logsigmoid(before)
        log_alpha = log_alpha_bar - log_alpha_bar_before
        variance = torch.sigmoid(-now)
        return Coefficients(
            (0.5 * log_alpha_bar).exp(),
            variance.sqrt(),
            (0.5 * log_alpha_bar_before).exp() * -torch.expm1(log_alpha) / variance,
            (0.5 * log_alpha).exp() * torch.sigmoid(-before) / variance,
        )

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar) x_0, (1 - alpha_bar) I), Eq. 4.

        Args:
            x_0: clean images in [-1, 1], shape (B, C, H, W).
            t: times in 0..T, shape (B,).
            noise: standard normal, shape (B, C, H, W).
        """
        return gather(self.sqrt_alpha_bar, t, x_0) * x_0 + gather(self.sigma, t, x_0) * noise

    def marginal(self, x_0: Tensor, t: Tensor) -> Gaussian:
        """q(x_t | x_0), Eq. 4, for t in 1..T."""
        return Gaussian(gather(self.sqrt_alpha_bar, t, x_0) * x_0, 2 * gather(self.sigma.log(), t, x_0))

    def step(self, x_before: Tensor, t: Tensor) -> Gaussian:
        """q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I), Eq. 2, for t in 1..T."""
        return Gaussian(gather(self.sqrt_alpha, t, x_before) * x_before, gather(self.log_beta, t, x_before))

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
        """q(x_{t-1} | x_t, x_0), Eqs. 6-7.

        Args:
            x_0: clean images in [-1, 1], shape (B, C, H, W).
            x_t: noisy images at time t, shape (B, C, H, W).
            t: times in 1..T, shape (B,).
        Returns:
            Mean mu_tilde and log-variance log beta_tilde in nats; t = 1, where beta_tilde is 0, takes that of t = 2.
        """
        mean = gather(self.c_0, t, x_t) * x_0 + gather(self.c_t, t, x_t) * x_t
        return Gaussian(mean, gather(self.log_beta_tilde, t, x_t))

    def respace(self, times: Tensor) -> "Process":
        """The chain that visits only `times`, with merged steps and the same marginals.

        Args:
            times: strictly increasing times in (0, T] that end with T, shape (S,): integers, or, on the original
                process, real numbers, at which `log_snr` interpolates.
        Raises:
            ValueError: the times do not increase to T, or a respaced chain is given real numbers.
        """
        increasing = bool((times.diff() > 0).all())
        if not increasing or float(times[0]) <= 0 or float(times[-1]) != self.T:
            raise ValueError(f"times must increase within 1..{self.T} and end with {self.T}, got {times.tolist()}")
        if times.is_floating_point():
            if self.respaced_from is not None:
                raise ValueError("non-integer times are times of the original process; respace that one")
            visited = torch.cat([times.new_zeros(1), times]).double()
            log_alpha_bar = torch.cat([visited.new_zeros(1), F.logsigmoid(self.log_snr(visited[1:]))])
            return self._chain(log_alpha_bar, visited)
        visited = torch.cat([times.new_zeros(1), times])
        return self._chain(self.log_alpha_bar[visited], self.times[visited])

    def _chain(self, log_alpha_bar: Tensor, times: Tensor) -> "Process":
        log_alpha = log_alpha_bar.diff()
        return Process(-torch.expm1(log_alpha), times, self.origin, log_alpha)


def _logit(log_p: Tensor) -> Tensor:
    """log(p / (1 - p))."""
    return log_p - torch.log1p(-log_p.exp())
