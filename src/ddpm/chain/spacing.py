"""Spacings: the times t_1 < ... < t_S = T that a chain of S steps visits, float64 or integers, shape (S,)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.chain.process import Process

RHO = 7.0


def uniform(process: Process, steps: int) -> Tensor:
    """Evenly spaced over 1..T, including both ends, rounded (a single step visits only T)."""
    return _from_one(process, steps).round().long()


def quadratic(process: Process, steps: int) -> Tensor:
    """Evenly spaced in sqrt(t - 1), not rounded: denser at small t (Song et al. 2021, DDIM)."""
    return 1 + (_from_one(process, steps) - 1) ** 2 / max(1, process.T - 1)


def trailing(process: Process, steps: int) -> Tensor:
    """T i / S, rounded: equal steps down from T (Lin et al. 2024)."""
    _check(process, steps)
    return (torch.arange(1, steps + 1, dtype=torch.float64) * process.T / steps).round().long()


def log_snr(process: Process, steps: int) -> Tensor:
    """Evenly spaced in log-SNR, not rounded (Lu et al. 2022); a terminal log-SNR of -infinity is left out."""
    first, last = _log_snr_ends(process)
    return _real(process, steps, lambda part: process.time(first + part * (last - first)))


def karras(process: Process, steps: int) -> Tensor:
    """Evenly spaced in (sigma / sqrt(alpha_bar))^(1/7), otherwise as `log_snr` (Karras et al. 2022, Eq. 5)."""
    first, last = (math.exp(-0.5 / RHO * end) for end in _log_snr_ends(process))
    return _real(process, steps, lambda part: process.time(-2 * RHO * (first + part * (last - first)).log()))


def _check(process: Process, steps: int) -> None:
    if not 1 <= steps <= process.T:
        raise ValueError(f"steps must be in 1..{process.T} (the length of the trained chain), got {steps}")


def _from_one(process: Process, steps: int) -> Tensor:
    """Evenly spaced times in [1, T], float64; a single step visits only T."""
    _check(process, steps)
    if steps == 1:
        return torch.tensor([process.T], dtype=torch.float64)
    return torch.linspace(1, process.T, steps, dtype=torch.float64)


def _log_snr_ends(process: Process) -> tuple[float, float]:
    """Log-SNR at time 1 and at the last time where it is finite."""
    return float(process.lambda_t[1]), float(process.lambda_t[process.T - process.zero_terminal_snr])


def _real(process: Process, steps: int, time: Callable[[Tensor], Tensor]) -> Tensor:
    """Times from 1 to T, time(part) in between, part evenly spaced in [0, 1]; T has no part if its SNR is zero."""
    times = _from_one(process, steps)
    if steps > 2:
        part = torch.linspace(0, 1, steps - process.zero_terminal_snr, dtype=torch.float64)
        times[1:-1] = time(part[1 : steps - 1]).cpu()
    return times


SPACINGS = {"uniform": uniform, "quadratic": quadratic, "trailing": trailing, "log_snr": log_snr, "karras": karras}
