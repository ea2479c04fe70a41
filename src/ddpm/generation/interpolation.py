"""Interpolation between two images diffused with shared noise (Ho et al. 2020, Figure 8), or between latents."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.model.diffusion import Diffusion
from ddpm.sampler.base import Noise, Sampler


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation from a to b, which preserves the norm of normal noise.

    Args:
        a: shape (C, H, W).
        b: shape (C, H, W).
        weight: weight of b, in [0, 1], shape (P,).
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
    """Decode (1 - w) x_t + w x_t', where both images are diffused with the same noise.

    Args:
        diffusion: the model, in evaluation mode.
        sampler: decodes from x_t.
        a: an image in [-1, 1], shape (C, H, W).
        b: another image, shape (C, H, W).
        step: t in the sampler's chain, 1..T; a larger t varies more than details.
        weight: w, in [0, 1], shape (P,).
        noise: step -> standard normal, shape (1, C, H, W), shared by all points.
        on_step: called after each step of the sampler.
    Returns:
        Shape (P, C, H, W).
    """
    process = sampler.chain(diffusion).process
    mixed = torch.lerp(a, b, weight.to(a).view(-1, 1, 1, 1))
    # Diffusion is linear in x_0, so mixing noisy images equals diffusing the mixture.
    x = process.diffuse(mixed, torch.full((len(mixed),), step, device=a.device), noise(0))
    return sampler.sample(diffusion, lambda k: noise(k).expand_as(mixed), on_step, (step, x))
