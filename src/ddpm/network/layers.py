"""Building blocks of the U-Net of Ho et al. 2020, appendix B.

Shapes: B batch, C channels, H x W pixels, E size of the time embedding.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def initialise(layer: Layer, scale: float = 1.0, fused: int = 1) -> Layer:
    """Initialise with uniform weights of variance scale / mean(fan_in, fan_out), or zero for scale 0, and zero biases.

    Args:
        layer: its parameters are overwritten.
        scale: scale of the variance, >= 0.
        fused: number of equally sized layers fused into this one; each is initialised with its own fan_out.
    """
    for name, parameter in layer.named_parameters():
        if name.endswith("weight") and scale > 0:
            for part in parameter.chunk(fused):
                nn.init.xavier_uniform_(part, gain=math.sqrt(scale))
        else:
            nn.init.zeros_(parameter)
    return layer


def conv(c_in: int, c_out: int, kernel: int = 3, scale: float = 1.0, fused: int = 1) -> nn.Conv2d:
    """A convolution that keeps H and W, with kernel size 1 or 3, initialised by `initialise`."""
    return initialise(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), scale, fused)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class TimeEmbedding(nn.Module):
    """Sinusoidal time embedding followed by two linear layers: (B,) -> (B, E)."""

    frequencies: Tensor

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        half = width // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * exponent).float(), persistent=False)
        self.first = initialise(nn.Linear(width, out))
        self.second = initialise(nn.Linear(out, out))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None].float() * self.frequencies
        embedding = torch.cat([angle.sin(), angle.cos()], 1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(embedding)))


class ResidualBlock(nn.Module):
    """Two normalised convolutions with the time embedding added between them: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, embedding: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm_1 = norm(c_in, groups)
        self.conv_1 = conv(c_in, c_out)
        self.time = initialise(nn.Linear(embedding, c_out))
        self.norm_2 = norm(c_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = conv(c_out, c_out, scale=0)
        self.shortcut = nn.Identity() if c_in == c_out else conv(c_in, c_out, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` is already activated, shape (B, E), or (1, E) for all images."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.time(embedding)[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over pixels, added to its input: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.query_key_value = conv(channels, 3 * channels, kernel=1, fused=3)
        self.out = conv(channels, channels, kernel=1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.norm(x)).flatten(2).chunk(3, dim=1)
        if x.device.type == "cpu":  # where torch's own attention would copy q, k and v
            weights = torch.softmax((q * q.shape[1] ** -0.5).transpose(1, 2) @ k, dim=2)
            h = v @ weights.transpose(1, 2)
        else:
            q, k, v = (part.transpose(1, 2).unsqueeze(1) for part in (q, k, v))
            h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.out(h.reshape(x.shape))


class Downsample(nn.Module):
    """Halves H and W with a strided convolution, padded at the bottom and right as in the published code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = initialise(nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles H and W by nearest-neighbour upsampling, followed by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
