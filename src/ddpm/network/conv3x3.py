"""Convolution of 3x3 kernels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddpm.network import native

FEWEST = 32
"""Tiles of the batch, from which on the transforms of the weights pay."""
FEWEST_OF_GRADIENTS = 128
"""Tiles from which on those of 4x4 pay in the gradient of the weights."""


class Conv3x3(nn.Conv2d):
    """(B, C_in, H, W) -> (B, C_out, H, W), padded by zeros; without padding (B, C_out, H - 2, W - 2).

    On a CPU where channels lie innermost, by minimal filtering, which multiplies four times less than the definition
    and computes in float32 whatever the images are in: Winograd's F(4x4, 3x3), or F(2x2, 3x3) if there are few pixels;
    Lavin and Gray 2016, arXiv:1509.09308.
    """

    padding: tuple[int, int]

    def __init__(self, c_in: int, c_out: int, padding: int = 1) -> None:
        super().__init__(c_in, c_out, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        side, dtype = self._tile(x), _computes_in(x)
        if not side:
            return super().forward(x)
        return Winograd.apply(x.to(dtype), self.weight, self.bias, self.padding[0], side)

    def _tile(self, x: Tensor) -> int:
        """Side of the tiles, 4 or 2, that pay for images x; 0 if none do."""
        dtype, given = _computes_in(x), self.weight.dtype
        if (
            self.in_channels % 16
            or self.out_channels % 16
            or dtype not in (torch.float32, torch.bfloat16)
            or given != dtype != torch.bfloat16
            or not self.weight.is_contiguous(memory_format=torch.channels_last)
            or not native.serves(x)
        ):
            return 0
        less = 2 - 2 * self.padding[0]
        four, two = (tiles(side, len(x), *(size - less for size in x.shape[2:])) for side in (4, 2))
        if four >= FEWEST and 36 * four <= 16 * two:
            return 4
        return 2 if two >= FEWEST and dtype == torch.float32 else 0


def tiles(side: int, batch: int, height: int, width: int) -> int:
    """Squares of that side which cover a batch of images."""
    return batch * -(-height // side) * -(-width // side)


def _computes_in(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class Winograd(torch.autograd.Function):
    """The convolution by the kernels: images in float32 or bfloat16, and weights in either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int, side: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = padding, side
        return _images(x, weight, bias, padding, side)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, side = ctx.settings
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = _images(dy, weight, None, 2 - padding, side) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, None, None, None, None
        d_weight = torch.empty_like(weight, dtype=torch.float32)
        d_bias = d_weight.new_empty(len(weight))
        c_out, c_in = weight.shape[:2]
        batch, _, height, width = dy.shape
        if tiles(side, batch, height, width) < FEWEST_OF_GRADIENTS:
            side = 2
        sizes = batch, height, width, c_in, c_out, padding
        native.call("winograd_weight", side, x.dtype == torch.bfloat16, x, dy, d_weight, d_bias, *sizes)
        return dx, d_weight, d_bias, None, None


def _images(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, side: int) -> Tensor:
    """The convolution of images, or, without a bias, its transpose, of their gradients."""
    transposed = bias is None
    c_out, c_in = weight.shape[:2]
    batch, (height, width) = len(x), (size + 2 * padding - 2 for size in x.shape[2:])
    y = x.new_empty(batch, height, width, c_in if transposed else c_out).permute(0, 3, 1, 2)
    half = x.dtype == torch.bfloat16, weight.dtype == torch.bfloat16
    sizes = batch, height, width, c_in, c_out, padding
    native.call("winograd", side, *half, x, weight, bias, y, *sizes, transposed)
    return y
