"""The probability-flow ODE of Song et al. 2021 (section 4.3) and its likelihood.

Over the log-SNR lambda, with alpha_bar = sigmoid(lambda) and sigma^2 = sigmoid(-lambda), the flow

    dx / dlambda = 1/2 (sigma^2 x - sigma eps(x, lambda))

maps the marginals of q into each other. The change of variables along it gives the density

    log p(x_1) = log N(x_T; 0, I) - integral of div(dx / dlambda) from lambda_T to lambda_1

of images at t = 1, the lowest noise level of the network. SciPy's adaptive Runge-Kutta 5(4) solves the ODE.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ddpm.chain.gaussian import bits_per_dim
from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.support.finite import finite

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(x, f(x)), both (B, ...), f differentiable in x -> div f, shape (B,)."""


class Density(NamedTuple):
    """Log-densities and their cost.

    Attributes:
        log_p: log-density of each image at t = 1, nats, float64, shape (B,).
        latent: x_T, shape (B, C, H, W).
        evaluations: number of network evaluations.
    """

    log_p: Tensor
    latent: Tensor
    evaluations: int


def velocity(diffusion: Diffusion, x: Tensor, log_snr: float) -> Tensor:
    """dx / dlambda, shape of x.

    Args:
        diffusion: the model.
        x: noisy images, shape (B, C, H, W).
        log_snr: lambda, between its values at T and 1.
    """
    here = torch.tensor(log_snr, dtype=torch.float64, device=x.device)
    eps = diffusion.eps(x, diffusion.process.origin.time(here).clamp(min=1))
    variance = torch.sigmoid(-here).to(x.dtype)
    return 0.5 * (variance * x - variance.sqrt() * eps)


def exact(x: Tensor, f: Tensor) -> Tensor:
    """div f from one derivative per dimension."""
    flat = f.flatten(1)
    total = f.new_zeros(len(f))
    for d in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, d].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1)[:, d]
    return total


def hutchinson(probe: Tensor) -> Divergence:
    """Hutchinson's unbiased estimate v' (df/dx) v of div f, for random signs v fixed along the flow.

    Args:
        probe: v, entries -1 or 1, shape (B, C, H, W).
    """

    def divergence(x: Tensor, f: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((f * probe).sum(), x)
        return (gradient * probe).flatten(1).sum(1)

    return divergence


def log_density(
    diffusion: Diffusion,
    x: Tensor,
    divergence: Divergence,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    on_step: Callable[[], None] = lambda: None,
) -> Density:
    """log p of images at t = 1, from the flow to T.

    The step size is chosen for the whole batch, so an image's value depends on the others within the tolerance.

    Args:
        diffusion: the model, in evaluation mode.
        x: images, shape (B, C, H, W).
        divergence: `exact`, or `hutchinson(probe)`.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        on_step: called after each evaluation.
    Raises:
        ValueError: the solver fails.
    """
    n = len(x)

    def change(log_snr: float, state: np.ndarray) -> np.ndarray:
        with torch.inference_mode(False), torch.enable_grad():
            here = _tensor(state[:-n], x).requires_grad_()
            f = velocity(diffusion, here, log_snr)
            div = divergence(here, f)
        on_step()
        return np.concatenate([_vector(f), _vector(div)])

    end, evaluations = _solve(change, np.concatenate([_vector(x), np.zeros(n)]), _ends(diffusion, x), rtol, atol)
    latent = torch.from_numpy(end[:-n]).reshape(x.shape)
    normal = -0.5 * (latent**2 + np.log(2 * np.pi)).flatten(1).sum(1)
    return Density(normal + torch.from_numpy(end[-n:]), latent.to(x), evaluations)


def carry(
    diffusion: Diffusion,
    x: Tensor,
    backwards: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Map images at t = 1 to their latents at T along the flow, or latents back to images.

    Args:
        diffusion: the model, in evaluation mode.
        x: images or latents, shape (B, C, H, W).
        backwards: map from T to 1.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        on_step: called after each evaluation.
    """

    def change(log_snr: float, state: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            f = velocity(diffusion, _tensor(state, x), log_snr)
        on_step()
        return _vector(f)

    first, last = _ends(diffusion, x)
    end, _ = _solve(change, _vector(x), (last, first) if backwards else (first, last), rtol, atol)
    return _tensor(end, x)


def check(process: Process) -> None:
    """Raise ValueError unless the flow has two ends with finite log-SNR."""
    if process.T < 2:
        raise ValueError("the probability-flow ODE needs a chain of at least 2 steps")
    if process.zero_terminal_snr:
        raise ValueError(
            "the probability-flow ODE needs a terminal SNR above zero, but this model's is zero (beta_T = 1): the "
            "log-SNR at T is infinite"
        )


def _ends(diffusion: Diffusion, x: Tensor) -> tuple[float, float]:
    """Log-SNR at t = 1 and at T."""
    process = diffusion.process.origin
    check(process)
    first, last = process.log_snr(torch.tensor([1, process.T], device=x.device)).tolist()
    return first, last


def _solve(
    change: Callable[[float, np.ndarray], np.ndarray],
    start: np.ndarray,
    span: tuple[float, float],
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, int]:
    """The state at the end of the span, and the number of evaluations."""

    def finite_change(log_snr: float, state: np.ndarray) -> np.ndarray:
        return finite(torch.from_numpy(change(log_snr, state)), "ODE's velocities").numpy()  # or it never ends

    solved = solve_ivp(finite_change, span, start, method="RK45", rtol=rtol, atol=atol)
    if not solved.success:
        raise ValueError(f"the probability-flow ODE could not be solved: {solved.message}; raise rtol and atol")
    return solved.y[:, -1], solved.nfev


def _vector(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy().ravel()


def _tensor(state: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(state).to(like).reshape(like.shape)


def dequantise(x_0: Tensor, uniform: Tensor, levels: int) -> Tensor:
    """Spread grey levels uniformly over their bins of half-width 1/(K-1), Theis et al. 2016.

    Args:
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        uniform: uniform noise in [0, 1), shape (B, C, H, W).
        levels: K.
    """
    return x_0 + (2 * uniform - 1) / (levels - 1)


def code_length(log_p: Tensor, dims: int, levels: int) -> Tensor:
    """Bits/dim of grey levels, an upper bound in expectation over `dequantise`: -log2(p) / D - log2(2/(K-1)), (B,)."""
    return bits_per_dim(-log_p - dims * np.log(2 / (levels - 1)), dims)
