"""Batches of images, determined by (seed, k, rank, world) alone.

Training never counts epochs. Micro-batch k = 0, 1, 2, ... belongs to pass e = k // batches_per_pass over the data. A
generator seeded by (seed, e) draws the order and the flips of pass e. Resuming at k is therefore exact, and for the
same total batch size all ranks together take the same images at k, however many ranks there are.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class TrainBatches:
    """An endless sequence of shuffled batches; the remainder of each pass is dropped.

    Args:
        n: number of images.
        batch_size: B, images per batch on one rank.
        seed: at least 0.
        flip: mirror each image with probability 1/2, drawn again in each pass.
        rank: rank of this process, 0..world-1.
        world: number of processes.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int = 0, flip: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if n < batch_size * world:
            raise ValueError(
                f"{n} training images are too few for one batch of {batch_size} images on each of {world}"
                f" processes; choose batch_size <= {n // world}, or fewer devices"
            )
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
        self.n, self.batch_size, self.seed, self.flip = n, batch_size, seed, flip
        self.rank, self.world = rank, world
        self.batches_per_pass = n // (batch_size * world)
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, k: int) -> Tensor:
        """Micro-batch k of this rank: int64, shape (B,); i + n means image i mirrored left to right."""
        e, j = divmod(k, self.batches_per_pass)
        if e != self._pass:
            self._pass, self._order = e, self._order_of(e)
        first = (j * self.world + self.rank) * self.batch_size
        return self._order[first : first + self.batch_size]

    def _order_of(self, e: int) -> Tensor:
        # SeedSequence mixes: generators seeded by seed + e would repeat between neighbouring seeds
        mixed = np.random.SeedSequence((self.seed, e)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self.n, generator=generator)
        if self.flip:
            order = order + self.n * torch.randint(2, (self.n,), generator=generator)
        return order


class TrainSampler(Sampler[Tensor]):
    """Micro-batches start() .. stop-1 in order; its length is stop, the length of the whole run.

    Args:
        batches: the batches to draw from.
        start: returns the number of the first micro-batch; called when iteration begins.
        stop: one past the last.
    """

    def __init__(self, batches: TrainBatches, start: Callable[[], int], stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.batches.batch, range(self.start(), self.stop))


class EvalSampler(Sampler[Tensor]):
    """Images rank, rank + world, ... below n in order; the ranks together see each image once, without padding.

    Args:
        n: number of images.
        batch_size: images per batch on one rank; the last batch may have fewer.
        rank: rank of this process, 0..world-1.
        world: number of processes.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {batch_size}")
        mine = torch.arange(n)[rank::world]
        self.batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)
