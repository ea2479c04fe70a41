"""Samples by index: sample i depends only on (seed, i), not on its batch or the number of processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.model.conditional import Classes
from ddpm.model.diffusion import Diffusion
from ddpm.sampler.base import Sampler


class Drawn(NamedTuple):
    """A batch of samples.

    Attributes:
        x: approximately in [-1, 1], float32, shape (B, C, H, W).
        index: index of each sample, int64, shape (B,).
    """

    x: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not needed


def draw(
    diffusion: Diffusion,
    sampler: Sampler,
    shape: Sequence[int],
    indices: Sequence[int],
    seed: int,
    batch_size: int,
    on_step: Callable[[], None] = lambda: None,
    classes: Classes | None = None,
) -> Iterator[Drawn]:
    """Draw the samples with the given indices, one batch at a time.

    Args:
        diffusion: the model, in evaluation mode.
        sampler: the sampler.
        shape: shape of one sample, (C, H, W).
        indices: indices of the samples, >= 0.
        seed: seed of the noise.
        batch_size: samples per batch.
        on_step: called after each step of each batch.
        classes: classes of the samples, for a conditional model; None for no class.
    """
    device = diffusion.process.times.device
    for start in range(0, len(indices), batch_size):
        index = torch.as_tensor(indices[start : start + batch_size])
        noise = IndexedNoise(seed, Stream.SAMPLES, index, shape, device)
        model = diffusion if classes is None else diffusion.given(classes.of(index).to(device), classes.guidance)
        yield Drawn(sampler.sample(model, noise, on_step), index)
