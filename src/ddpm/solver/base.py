"""Solvers of inverse problems: reverse diffusion with the unconditional model, without retraining."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.operator.base import Measurement, Operator
from ddpm.sampler.base import Noise, Sampler


class Solver(ABC):
    """Samples approximately from p(x_0 | y), for any parameterization and variance of the model."""

    needs_linear: bool = False
    """Whether the operator must be linear."""

    @abstractmethod
    def sample(
        self,
        diffusion: Diffusion,
        sampler: Sampler,
        measurement: Measurement,
        noise: Noise,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Draw images, approximately in [-1, 1], shape (B, C, H, W).

        Args:
            diffusion: the model, in evaluation mode, with gradients of its weights disabled.
            sampler: the sampler that moves along the chain.
            measurement: the measurements of the batch.
            noise: step -> standard normal, shape (B, C, H, W).
            on_step: called after each step of the chain.
        """

    def check(self, operator: Operator, process: Process) -> None:
        """Raise ValueError unless the solver supports the operator and the chain."""
        if self.needs_linear and not operator.linear:
            raise ValueError("this solver needs a linear operator, but this operator is nonlinear; choose solver=dps")


def conjugate_gradient(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve A u = b per batch element by conjugate gradients from u = 0; A is symmetric positive definite.

    Args:
        apply: u -> A u, shape of b.
        b: shape (B, ...).
        iterations: maximum number; an element stops when it is solved or its direction has no positive curvature.
    """

    def dot(a: Tensor, c: Tensor) -> Tensor:
        return (a * c).flatten(1).sum(1).view(-1, *[1] * (b.dim() - 1))

    u, r = torch.zeros_like(b), b.clone()
    p, rr = r, dot(r, r)
    enough = torch.finfo(b.dtype).eps ** 2 * rr
    for _ in range(iterations):
        Ap = apply(p)
        curvature = dot(p, Ap)
        done = (rr <= enough) | (curvature <= 0)  # False for NaN, so that it reaches the result
        alpha = torch.where(done, 0.0, rr / torch.where(done, 1.0, curvature))
        u = u + alpha * p
        r = r - alpha * Ap
        before, rr = rr, dot(r, r)
        p = r + torch.where(done, 0.0, rr / torch.where(done, 1.0, before)) * p
    return u
