"""Between two images: through noise that they share (Ho et al. 2020, Figure 8), or between their latents."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.sampler.base import Noise, Sampler


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Points on the great circle from a to b, which keep the norm that normal noise has.

    Args:
        a: shape (C, H, W).
        b: shape (C, H, W).
        weight: of b, in [0, 1], shape (P,).
    Returns:
        Shape (P, C, H, W).
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    weight = weight.to(a).view(-1, 1, 1, 1)
    if angle < 1e-6:
        return (1 - weight) * a + weight * b
    return (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()


@torch.inference_mode()
def interpolate(
    diffusion: Diffusion,
    sampler: Sampler,
    a: Tensor,
    b: Tensor,
    step: int,
    weight: Tensor,
    noise: Noise,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Decodings of (1 - w) x_t + w x_t', where both images were diffused with the same noise.

    Args:
        diffusion: the model, in evaluation mode.
        sampler: decodes from x_t.
        a: an image in [-1, 1], shape (C, H, W).
        b: another.
        step: t in the sampler's chain, 1..T; large ones vary more than the details.
        weight: w of b, in [0, 1], shape (P,).
        noise: step -> standard normal, shape (1, C, H, W), for all points alike.
        on_step: called after each step of the sampler.
    Returns:
        Shape (P, C, H, W).
    """
    process = sampler.chain(diffusion).process
    mixed = torch.lerp(a, b, weight.to(a).view(-1, 1, 1, 1))
    # Diffusion is linear in x_0, so that the mixture of the noisy images is the noisy mixture.
    x = process.diffuse(mixed, torch.full((len(mixed),), step, device=a.device), noise(0))
    return sampler.sample(diffusion, lambda k: noise(k).expand_as(mixed), on_step, (step, x))
