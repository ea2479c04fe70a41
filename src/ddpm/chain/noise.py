"""Random numbers that depend only on their key, not on the order of drawing.

Philox is a counter-based generator: the noise of (seed, stream, index, step) is bit-identical in any batch and on any
number of processes. It is drawn on the CPU, so it is the same for every device.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """Independent streams of noise, one for each use."""

    SAMPLES = 1
    LIKELIHOOD = 2
    TRAINING = 3
    VALIDATION = 4
    DROPOUT = 5
    TIMES = 6
    DEQUANTISATION = 7
    PROBE = 8
    MEASUREMENT = 9


class IndexedNoise:
    """Noise for a batch of images, keyed by their indices.

    Args:
        seed: seed of the experiment, >= 0.
        stream: what the noise is for.
        indices: image indices, shape (B,).
        shape: shape of one image, (C, H, W).
        device: device of the noise.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        seed: int,
        stream: Stream,
        indices: Sequence[int] | Tensor,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed = seed
        self.stream = stream
        self.indices = [int(i) for i in indices]
        self.shape = tuple(shape)
        self.device = device
        self.dtype = dtype
        self._numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))

    def __call__(self, step: int | Tensor) -> Tensor:
        """Standard normal noise, shape (B, C, H, W).

        Args:
            step: one step for all images, or one per image, shape (B,).
        """
        return self._draw(step, lambda generator, out: generator.standard_normal(dtype=out.dtype, out=out))

    def uniform(self, step: int | Tensor) -> Tensor:
        """Uniform noise in [0, 1), shape (B, C, H, W), with the same key as the normal noise of that step."""
        return self._draw(step, lambda generator, out: generator.random(dtype=out.dtype, out=out))

    def _draw(self, step: int | Tensor, fill: Callable[[np.random.Generator, np.ndarray], Any]) -> Tensor:
        drawn = np.empty((len(self.indices), int(np.prod(self.shape))), self._numpy_dtype)
        steps = [step] * len(drawn) if isinstance(step, int) else step.tolist()
        for row, index, own in zip(drawn, self.indices, steps, strict=True):
            # The lowest word of the counter advances as numbers are drawn.
            philox = np.random.Philox(key=self.seed, counter=[0, own, index, self.stream])
            fill(np.random.Generator(philox), row)
        return torch.from_numpy(drawn).reshape(len(drawn), *self.shape).to(self.device)


def seed_from(*key: int) -> int:
    """Hash a key into a 63-bit seed for torch.Generator."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
