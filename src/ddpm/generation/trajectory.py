"""Progressive generation, Ho et al. 2020, section 4.3."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.model.diffusion import Diffusion
from ddpm.sampler.base import Sampler
from ddpm.support.finite import finite


def evenly(total: int, n: int) -> list[int]:
    """At most n evenly spaced steps from total to 0, including both ends."""
    return sorted({round(total * i / max(1, n - 1)) for i in range(n)}, reverse=True)


@torch.inference_mode()
def predictions(
    diffusion: Diffusion, sampler: Sampler, noise: IndexedNoise, n: int, on_step: Callable[[], None] = lambda: None
) -> Tensor:
    """x^_0 along the chain (Figure 6), in [-1, 1], shape (B, at most n, C, H, W), from noise to sample."""
    shown = evenly(sampler.chain(diffusion).T - 1, n)
    found = []
    for state in sampler.trajectory(diffusion, noise):
        on_step()
        if state.step in shown:
            found.append(state.x if state.step == 0 else state.x_0)
    return finite(torch.stack(found, 1), "predictions").clamp(-1, 1)


@torch.inference_mode()
def sharing(
    diffusion: Diffusion,
    sampler: Sampler,
    shape: Sequence[int],
    seed: int,
    fractions: Sequence[float],
    n: int,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Samples that share x_t for several t (Figure 7).

    Args:
        diffusion: the model, in evaluation mode.
        sampler: the sampler.
        shape: shape of one sample, (C, H, W).
        seed: seed of the noise.
        fractions: t as fractions of the chain, in (0, 1], decreasing.
        n: samples per t.
        on_step: called after each step of the sampler.
    Returns:
        For each t, x_t followed by its n samples, in [-1, 1], shape (len(fractions), 1 + n, C, H, W).
    """
    device = diffusion.process.times.device
    length = sampler.chain(diffusion).T
    one, many = (IndexedNoise(seed, Stream.SAMPLES, range(k), shape, device) for k in (1, n))
    on_the_way = {length: one(0)}
    for state in sampler.trajectory(diffusion, one):
        on_step()
        on_the_way[state.step] = state.x
    rows = []
    for fraction in fractions:
        step = max(1, round(fraction * length))
        x_t = on_the_way[step]
        rows.append(torch.cat([x_t, sampler.sample(diffusion, many, on_step, (step, x_t.expand(n, *shape)))]))
    return finite(torch.stack(rows), "samples").clamp(-1, 1)
