"""Bits/dim of real images, divided among the processes.

The noise of image i at time t depends only on (seed, i, t), and its sampled times only on (seed, i), so neither the
batch size nor the number of processes changes the result beyond rounding.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.data.images import Images
from ddpm.data.scaling import to_unit
from ddpm.likelihood.elbo import Bound, bound
from ddpm.likelihood.sampled_bound import Proposal, SampledBound, pilot, pilot_times, proposal, sampled_bound
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Clip
from ddpm.parallel.gathered import Gathered
from ddpm.parallel.share import ALONE, Share
from ddpm.support.bars import Steps

PILOT_IMAGES = 8


def full(
    diffusion: Diffusion,
    images: Images,
    n: int,
    seed: int,
    batch_size: int,
    clip: Clip = False,
    share: Share = ALONE,
    progress: bool = False,
) -> Bound:
    """All terms of the bound of the first n images, gathered on every process.

    Args:
        diffusion: the model, in evaluation mode.
        images: grey levels 0..levels-1.
        n: number of images, over all processes.
        seed: seed of the noise.
        batch_size: images per batch.
        clip: clip x^_0 to [-1, 1] (see `Prediction`).
        share: this process's share.
        progress: whether to show a progress bar.
    """
    gathered = Gathered(("prior", "terms", "errors")).to(diffusion.process.times.device)
    with Steps("bits/dim", _batches(share, n, batch_size) * diffusion.T, progress) as steps:
        for model, x_0, index, noise in _noisy(diffusion, images, share.of(n), seed, batch_size):
            part = bound(model, x_0, noise, clip, steps)
            gathered.update({"prior": part.prior, "terms": part.terms, "errors": part.errors}, index)
    values = {name: value.cpu() for name, value in gathered.compute().items()}
    return Bound(values["prior"], part.dims, values["terms"], values["errors"])


def sampled(
    diffusion: Diffusion,
    images: Images,
    n: int,
    seed: int,
    batch_size: int,
    evaluations: int,
    clip: Clip = False,
    share: Share = ALONE,
    progress: bool = False,
) -> SampledBound:
    """The bound of the first n images, estimated from a few evaluations each, gathered on every process.

    Args:
        diffusion: the model, in evaluation mode.
        images: grey levels 0..levels-1.
        n: number of images, over all processes.
        seed: seed of the noise and the times.
        batch_size: images per batch.
        evaluations: network evaluations per image, at least 3.
        clip: clip x^_0 to [-1, 1] (see `Prediction`).
        share: this process's share.
        progress: whether to show a progress bar.
    """
    calls = _batches(share, n, batch_size) * min(evaluations, diffusion.T)
    knots = len(pilot_times(diffusion.T)) if evaluations < diffusion.T else 0
    gathered = Gathered(("prior", "times", "terms", "error")).to(diffusion.process.times.device)
    with Steps("bits/dim", knots + calls, progress) as steps:
        chosen = _proposal(diffusion, images, min(n, PILOT_IMAGES), seed, evaluations, clip, steps)
        for model, x_0, index, noise in _noisy(diffusion, images, share.of(n), seed, batch_size):
            uniform = IndexedNoise(seed, Stream.TIMES, index, (chosen.drawn,), dtype=torch.float64).uniform(0)
            part = sampled_bound(model, x_0, noise, chosen, uniform, clip, steps)
            gathered.update({"prior": part.prior, "times": part.times, "terms": part.terms, "error": part.error}, index)
    values = {name: value.cpu() for name, value in gathered.compute().items()}
    return SampledBound(values["prior"], part.dims, chosen, values["times"], values["terms"], values["error"])


def _proposal(
    diffusion: Diffusion, images: Images, n: int, seed: int, evaluations: int, clip: Clip, steps: Steps
) -> Proposal:
    """The proposal from the first n images in one batch: the same on every process and for every batch size."""
    if evaluations >= diffusion.T:
        return proposal(torch.ones(diffusion.T - 1), evaluations)
    ((model, x_0, _, noise),) = _noisy(diffusion, images, range(n), seed, n)
    return proposal(pilot(model, x_0, noise, clip, on_step=steps), evaluations)


def _noisy(
    diffusion: Diffusion, images: Images, indices: range, seed: int, batch_size: int
) -> Iterator[tuple[Diffusion, Tensor, Tensor, IndexedNoise]]:
    """For each batch: the model given its labels, images in [-1, 1], their indices and their noise."""
    device = diffusion.process.times.device
    for index in torch.split(torch.tensor(indices), batch_size):
        x_0 = to_unit(images.pixels(index), diffusion.levels).to(device)
        model = diffusion.given(images.labels[index].to(device))
        yield model, x_0, index, IndexedNoise(seed, Stream.LIKELIHOOD, index, x_0.shape[1:], device)


def _batches(share: Share, n: int, batch_size: int) -> int:
    return math.ceil(len(share.of(n)) / batch_size)
