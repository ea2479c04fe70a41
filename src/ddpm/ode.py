"""The probability-flow ODE of Song et al. 2021 (section 4.3), and the likelihood that it gives.

Over the log-SNR lambda, with alpha_bar = sigmoid(lambda) and sigma^2 = sigmoid(-lambda), the flow

    dx / dlambda = 1/2 (sigma^2 x - sigma eps(x, lambda))

carries the marginals of q into each other. The change of variables along it gives a density,

    log p(x_1) = log N(x_T; 0, I) - integral of div(dx / dlambda) from lambda_T to lambda_1

of images at t = 1, the least noise that the network knows. The ODE is solved by SciPy's adaptive Runge-Kutta 5(4).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ddpm.diffusion import Diffusion
from ddpm.gaussian import bits_per_dim

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(x, f(x)), both (B, ...), f differentiable in x -> div f, shape (B,)."""


class Density(NamedTuple):
    """Log-densities, and what they cost.

    Attributes:
        log_p: of each image at t = 1, nats, float64, shape (B,).
        latent: x_T, shape (B, C, H, W).
        evaluations: of the network.
    """

    log_p: Tensor
    latent: Tensor
    evaluations: int


def velocity(diffusion: Diffusion, x: Tensor, log_snr: float) -> Tensor:
    """dx / dlambda, shape of x.

    Args:
        diffusion: the model.
        x: noisy images, shape (B, C, H, W).
        log_snr: lambda, between those of T and 1.
    """
    here = torch.tensor(log_snr, dtype=torch.float64, device=x.device)
    eps = diffusion.eps(x, diffusion.process.origin.time(here).clamp(min=1))
    variance = torch.sigmoid(-here).to(x.dtype)
    return 0.5 * (variance * x - variance.sqrt() * eps)


def exact(x: Tensor, f: Tensor) -> Tensor:
    """div f by one derivative for each dimension."""
    flat = f.flatten(1)
    total = f.new_zeros(len(f))
    for d in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, d].sum(), x, retain_graph=True)
        total = total + gradient.flatten(1)[:, d]
    return total


def hutchinson(probe: Tensor) -> Divergence:
    """v' (df/dx) v, whose mean is div f, for signs v that stay the same along the flow.

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
    """log p of images at t = 1, by the flow from there to T.

    The step is chosen for the batch as a whole, so that an image's value depends on the others within the tolerance.

    Args:
        diffusion: the model, in evaluation mode.
        x: images, shape (B, C, H, W).
        divergence: `exact`, or `hutchinson(probe)`.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.
        on_step: called after each evaluation.
    Raises:
        ValueError: the solver gives up.
    """
    n = len(x)

    def right_hand_side(log_snr: float, state: np.ndarray) -> np.ndarray:
        with torch.inference_mode(False), torch.enable_grad():
            here = torch.from_numpy(state[:-n]).to(x).reshape(x.shape).requires_grad_()
            f = velocity(diffusion, here, log_snr)
            div = divergence(here, f)
        on_step()
        return np.concatenate([f.detach().cpu().double().numpy().ravel(), div.detach().cpu().double().numpy()])

    process = diffusion.process.origin
    first, last = process.log_snr(torch.tensor([1, process.T], device=x.device)).tolist()
    start = np.concatenate([x.detach().cpu().double().numpy().ravel(), np.zeros(n)])
    solved = solve_ivp(right_hand_side, (first, last), start, method="RK45", rtol=rtol, atol=atol)
    if not solved.success:
        raise ValueError(f"the probability-flow ODE could not be solved: {solved.message}; raise rtol and atol")
    end = torch.from_numpy(solved.y[:, -1])
    latent, change = end[:-n].reshape(x.shape), end[-n:]
    normal = -0.5 * (latent**2 + np.log(2 * np.pi)).flatten(1).sum(1)
    return Density(normal + change, latent.to(x), solved.nfev)


def dequantise(x_0: Tensor, uniform: Tensor, levels: int) -> Tensor:
    """Grey levels spread evenly over their bins of half-width 1/(K-1), Theis et al. 2016.

    Args:
        x_0: grey levels in [-1, 1], shape (B, C, H, W).
        uniform: in [0, 1), shape (B, C, H, W).
        levels: K.
    """
    return x_0 + (2 * uniform - 1) / (levels - 1)


def code_length(log_p: Tensor, dims: int, levels: int) -> Tensor:
    """Bits/dim of grey levels, at most on average over `dequantise`: -log2 p less the bits of a bin's width, (B,)."""
    return bits_per_dim(-log_p - dims * np.log(2 / (levels - 1)), dims)
