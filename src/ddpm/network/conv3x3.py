"""Convolution of 3x3 kernels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddpm.network import native

TILES = 128
"""Of 2x2 pixels in the batch, from which on the transforms of the weights pay."""


class Conv3x3(nn.Conv2d):
    """(B, C_in, H, W) -> (B, C_out, H, W), padded by zeros; without padding (B, C_out, H - 2, W - 2).

    In float32 on a CPU where channels lie innermost, by minimal filtering, which multiplies 2.25 times less than the
    definition and rounds about as much: Winograd's F(2x2, 3x3); Lavin and Gray 2016, arXiv:1509.09308.
    """

    padding: tuple[int, int]

    def __init__(self, c_in: int, c_out: int, padding: int = 1) -> None:
        super().__init__(c_in, c_out, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return Winograd.apply(x, self.weight, self.bias, self.padding[0]) if self._pays(x) else super().forward(x)

    def _pays(self, x: Tensor) -> bool:
        batch, _, height, width = x.shape
        less = 2 - 2 * self.padding[0]
        return (
            self.in_channels % 16 == self.out_channels % 16 == 0
            and batch * -(-(height - less) // 2) * -(-(width - less) // 2) >= TILES
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and self.weight.is_contiguous(memory_format=torch.channels_last)
            and native.serves(x)
        )


class Winograd(torch.autograd.Function):
    """The convolution by the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _images(x, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _images(dy, weight, None, 2 - ctx.padding) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, None, None, None
        d_weight, d_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        c_out, c_in = weight.shape[:2]
        batch, _, height, width = dy.shape
        native.call("winograd_weight", x, dy, d_weight, d_bias, batch, height, width, c_in, c_out, ctx.padding)
        return dx, d_weight, d_bias, None


def _images(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The convolution of images, or, without a bias, its transpose, of their gradients."""
    transposed = bias is None
    c_out, c_in = weight.shape[:2]
    batch, (height, width) = len(x), (side + 2 * padding - 2 for side in x.shape[2:])
    y = x.new_empty(batch, height, width, c_in if transposed else c_out).permute(0, 3, 1, 2)
    native.call("winograd", x, weight, bias, y, batch, height, width, c_in, c_out, padding, transposed)
    return y
