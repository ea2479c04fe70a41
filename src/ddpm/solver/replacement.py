"""Replacement of the measured part (Song et al. 2021), with resampling (RePaint, Lugmayr et al. 2022)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddpm.chain.tables import same
from ddpm.model.diffusion import Diffusion
from ddpm.operator.base import LinearOperator, Measurement, linear
from ddpm.sampler.base import Noise, Sampler, State
from ddpm.solver.base import Solver, conjugate_gradient

APART = 2**24
"""Step offset between the noise of two uses, above the highest step at which a sampler draws."""


class Replacement(Solver):
    """Replaces A x_{t-1} according to y after each step, then goes back to x_t and repeats, `resamplings` times in all.

        x <- x + A' (A A' + sigma_y^2 I)^-1 (sqrt(alpha_bar) y + sigma A z - A x)

    For sigma_y = 0 and enough iterations, A x_{t-1} is then a draw from q(A x_{t-1} | y). For noisy y, that
    distribution depends on the data: x moves only part of the way, as in ridge regression, and A x_{t-1} is no such
    draw.

    The sampled part depends on the replaced part only through x_t. This is too weak even with a perfect model, so the
    samples are biased; more resamplings reduce the bias.

    Args:
        resamplings: number of times to take each step, >= 1; 1 is replacement without resampling.
        iterations: conjugate gradient iterations, which need no network evaluations.
    """

    needs_linear = True

    def __init__(self, resamplings: int = 5, iterations: int = 20) -> None:
        if resamplings < 1 or iterations < 1:
            raise ValueError(
                f"solver.resamplings and solver.iterations must be at least 1, got {resamplings} and {iterations}"
            )
        self.resamplings = resamplings
        self.iterations = iterations

    @torch.inference_mode()
    def sample(
        self,
        diffusion: Diffusion,
        sampler: Sampler,
        measurement: Measurement,
        noise: Noise,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        operator = linear(measurement)
        chain = sampler.chain(diffusion)
        process = chain.process
        x, state = noise(0), None
        for step in range(chain.T, 0, -1):
            for again in range(self.resamplings):
                own, measured, resampled = (partial(_use, noise, 3 * again + k) for k in range(3))
                at = chain.predict(x, same(step, x), sampler.clip)
                x_0 = at.x_0
                x = sampler.move(chain, at, step, own, state)
                signal, sigma = (float(table[step - 1]) for table in (process.sqrt_alpha_bar, process.sigma))
                target = signal * measurement.y
                if step > 1:
                    target = target + sigma * operator(measured(step))
                x = self._replaced(operator, x, target, measurement.sigma)
                if step == 1 or again == self.resamplings - 1:
                    break
                alpha, beta = float(process.sqrt_alpha[step]), float(process.beta[step])
                x = alpha * x + beta**0.5 * resampled(step)
                state = None
            state = State(step - 1, x, x_0)
            on_step()
        return x

    def _replaced(self, operator: LinearOperator, x: Tensor, target: Tensor, sigma: float) -> Tensor:
        shape = x.shape[1:]

        def squared(u: Tensor) -> Tensor:
            return operator(operator.adjoint(u, shape)) + sigma**2 * u

        return x + operator.adjoint(conjugate_gradient(squared, target - operator(x), self.iterations), shape)


def _use(noise: Noise, k: int, step: int) -> Tensor:
    """Noise for the k-th use of a step."""
    assert step < APART
    return noise(k * APART + step)
