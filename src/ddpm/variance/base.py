"""The variance sigma_t^2 of p(x_{t-1} | x_t)."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.chain.process import Process


class Variance(ABC):
    """log sigma_t^2, fixed or read from extra channels of the network."""

    extra_channels: int = 0
    """Extra output channels, as a multiple of the image's: 0 if fixed, 1 if learned."""

    @abstractmethod
    def log_var(self, process: Process, t: Tensor, raw: Tensor | None, x_t: Tensor) -> Tensor:
        """log sigma_t^2 in nats, broadcastable to x_t.

        Args:
            process: the chain, possibly respaced.
            t: times in 1..T, shape (B,).
            raw: the network's extra channels, shape of x_t; None if the variance is fixed.
            x_t: noisy images, shape (B, C, H, W).
        """
