"""Bits/dim of real images, shared out over the processes."""

from collections.abc import Callable

import torch

from ddpm.data.images import Images
from ddpm.data.scaling import to_unit
from ddpm.diffusion import Diffusion
from ddpm.elbo import Bound, bound
from ddpm.metrics.gathered import Gathered
from ddpm.noise import IndexedNoise, Stream
from ddpm.share import ALONE, Share


def bound_of(
    diffusion: Diffusion,
    images: Images,
    n: int,
    seed: int,
    batch_size: int,
    clip: bool = False,
    share: Share = ALONE,
    on_step: Callable[[], None] = lambda: None,
) -> Bound:
    """The bound of the first n images of all processes, on each of them.

    The noise of image i at time t is a function of (seed, i, t).

    Args:
        diffusion: the model, in evaluation mode.
        images: grey levels 0..levels-1.
        n: number of images, of all processes together.
        seed: of the noise.
        batch_size: images at a time; the result does not depend on it beyond rounding.
        clip: clip x^_0 to [-1, 1].
        share: of this process.
        on_step: called after each evaluation of the network.
    """
    device = diffusion.process.times.device
    metric = Gathered(("prior", "terms")).to(device)
    for index in torch.split(torch.tensor(share.of(n)), batch_size):
        x_0 = to_unit(images.pixels(index), diffusion.levels).to(device)
        noise = IndexedNoise(seed, Stream.LIKELIHOOD, index, x_0.shape[1:], device)
        part = bound(diffusion, x_0, noise, clip, on_step)
        metric.update({"prior": part.prior, "terms": part.terms}, index)
    everyone = metric.compute()
    return Bound(everyone["prior"].cpu(), everyone["terms"].cpu(), part.dims)
