"""What all networks have in common."""

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """(x_t, t, label) -> an image-shaped prediction; built for an image size and numbers of channels and classes."""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, out_channels, H, W).

        Args:
            x_t: noisy images, scaled by the parameterization's c_in, shape (B, in_channels, H, W).
            t: the parameterization's c_noise of the time, shape (B,); by default times from 0.
            label: classes, int64, shape (B,); None for none in the whole batch.
        """
