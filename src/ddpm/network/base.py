"""Base class of networks."""

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """(x_t, t, label) -> image-shaped prediction, for a fixed image size and number of channels and classes."""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, out_channels, H, W).

        Args:
            x_t: noisy images, scaled by the parameterization's c_in, shape (B, in_channels, H, W).
            t: the parameterization's c_noise, shape (B,); by default the time counted from 0.
            label: classes, int64, shape (B,); None for no class.
        """
