"""The U-Net of Ho et al. 2020, appendix B."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.chain.tables import distinct
from ddpm.network.base import Network
from ddpm.network.layers import Attention, Downsample, ResidualBlock, TimeEmbedding, Upsample, conv, norm


class SizeError(ValueError):
    """The network does not fit the image size."""


class UNet(Network):
    """U-Net: (x_t, t, label) -> image-shaped prediction.

    Args:
        image_size: H = W of the images, divisible by 2 for each level except the last.
        in_channels: C of the images.
        out_channels: C of the output.
        width: channels at full resolution; the time embedding has four times as many.
        multipliers: channels of each level, as multiples of width.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: resolutions (H) with attention after every residual block; the middle always has it.
        dropout: probability, in [0, 1).
        groups: groups of the group normalisations; must divide the width.
        classes: number of classes, 0 for none.
        recompute: activation checkpointing per stage, which saves memory and costs time.
    Raises:
        ValueError: the sizes do not fit together.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        groups: int = 32,
        classes: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        sizes = [image_size // 2**level for level in range(len(multipliers))]
        self._check(image_size, width, multipliers, blocks, attention, dropout, groups, sizes)
        channels = [width * m for m in multipliers]
        embedding = 4 * width

        def stage(c_in: int, c_out: int, size: int) -> nn.ModuleList:
            parts: list[nn.Module] = [ResidualBlock(c_in, c_out, embedding, dropout, groups)]
            if size in attention:
                parts.append(Attention(c_out, groups))
            return nn.ModuleList(parts)

        self.time = TimeEmbedding(width, embedding)
        self.conv_in = conv(in_channels, width)

        skips = [width]
        self.down = nn.ModuleList()
        c = width
        for level, (c_level, size) in enumerate(zip(channels, sizes, strict=True)):
            for _ in range(blocks):
                self.down.append(stage(c, c_level, size))
                c = c_level
                skips.append(c)
            if level < len(channels) - 1:
                self.down.append(nn.ModuleList([Downsample(c)]))
                skips.append(c)

        self.middle = nn.ModuleList(
            [
                ResidualBlock(c, c, embedding, dropout, groups),
                Attention(c, groups),
                ResidualBlock(c, c, embedding, dropout, groups),
            ]
        )

        self.up = nn.ModuleList()
        for level in reversed(range(len(channels))):
            for block in range(blocks + 1):
                parts = stage(c + skips.pop(), channels[level], sizes[level])
                c = channels[level]
                if level > 0 and block == blocks:
                    parts.append(Upsample(c))
                self.up.append(parts)

        self.norm_out = norm(c, groups)
        self.conv_out = conv(c, out_channels, scale=0)
        self.label = nn.Embedding(classes + 1, embedding) if classes else None

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, out_channels, H, W).

        Args:
            x_t: noisy images, shape (B, in_channels, H, W).
            t: times from 0, shape (B,).
            label: classes, or the number of classes for no class, int64, shape (B,); None for no class.
        """
        embedding = self.time(distinct(t))
        if self.label is not None:
            nothing = self.label.weight[-1]
            embedding = embedding + (nothing if label is None else self.label(label))
        embedding = F.silu(embedding)
        h = self.conv_in(x_t)
        skips = [h]
        for stage in self.down:
            h = self._run(stage, h, embedding)
            skips.append(h)
        h = self._run(self.middle, h, embedding)
        for stage in self.up:
            h = self._run(stage, torch.cat([h, skips.pop()], 1), embedding)
        return self.output(h)

    def output(self, h: Tensor) -> Tensor:
        """The prediction from the last features."""
        return self.conv_out(F.silu(self.norm_out(h)))

    def _run(self, parts: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._stage, parts, h, embedding, use_reentrant=False)
        return self._stage(parts, h, embedding)

    @staticmethod
    def _stage(parts: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        for part in parts.children():
            h = part(h, embedding) if isinstance(part, ResidualBlock) else part(h)
        return h

    @staticmethod
    def _check(
        image_size: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        dropout: float,
        groups: int,
        sizes: Sequence[int],
    ) -> None:
        halvings = len(multipliers) - 1
        if halvings < 0 or any(m < 1 for m in multipliers) or blocks < 1:
            raise ValueError(
                f"a U-Net needs at least one level, one block and multipliers of at least 1; "
                f"got multipliers={list(multipliers)}, blocks={blocks}"
            )
        if image_size % 2**halvings:
            raise SizeError(
                f"image_size {image_size} cannot be halved {halvings} times, as multipliers={list(multipliers)} "
                f"requires; use fewer multipliers or another image size"
            )
        unknown = [size for size in attention if size not in sizes]
        if unknown:
            raise SizeError(f"attention at {unknown} is never reached; the levels of this network are {list(sizes)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}; Ho et al. use 0.1 on CIFAR10")
        if width < 4 or groups < 1:
            raise ValueError(f"width must be at least 4 (time embedding), groups at least 1, got {width} and {groups}")
        if width % groups or width % 2:
            raise ValueError(f"width must be even and divisible by groups={groups}, got {width}")
