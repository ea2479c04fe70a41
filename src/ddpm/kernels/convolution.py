"""Convolution by minimal filtering where that is faster."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.kernels import native

TILES = {(3, 3): (4, 2), (5, 5): (2,), (1, 7): (3,), (7, 1): (3,), (1, 3): (4,), (3, 1): (4,)}
"""Outputs of a tile along each axis of several taps, best first, for each kernel that there is."""
FEWEST = 32
"""Tiles of the batch, from which on the transforms of the weights pay."""


class Convolution(nn.Conv2d):
    """(B, C_in, H, W) -> (B, C_out, H + 2 p_y - k_y + 1, W + 2 p_x - k_x + 1), padded by zeros.

    On a CPU where channels lie innermost, by minimal filtering (Winograd; Lavin and Gray 2016, arXiv:1509.09308): a
    kernel of 3x3 takes four times fewer multiplications than by the definition, those of 5x5, 1x7, 7x1, 1x3 and 3x1,
    which are without gradients there, 2.8 to 1.75 times fewer. What is computed is float32 whatever the images are in.
    A pixel that is not finite makes all outputs of the tiles that read it so.

    Args:
        c_in: channels of the images.
        c_out: channels of the result.
        kernel: its height and width.
        padding: above and below, left and right.
        rectified: whether max(y, 0) is returned, without gradients.
    """

    kernel_size: tuple[int, int]
    padding: tuple[int, int]

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: tuple[int, int] = (3, 3),
        padding: tuple[int, int] = (1, 1),
        rectified: bool = False,
    ) -> None:
        super().__init__(c_in, c_out, kernel, padding=padding)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        side = self._tile(x)
        if not side:
            y = super().forward(x)
            return y.relu_() if self.rectified else y
        return Winograd.apply(x.to(_dtype(x)), self.weight, self.bias, self.padding, side, self.rectified)

    def _tile(self, x: Tensor) -> int:
        """Side of the tiles that pay for images x, 0 if none do, or if torch has to compute it or to refuse it."""
        weight, bias = self.weight, self.bias
        if self.in_channels % 16 or self.out_channels % 16 or bias is None or not native.serves(x, weight, bias):
            return 0
        square = self.kernel_size == (3, 3)
        dtype, given = _dtype(x), weight.dtype
        shapes = x.shape[1], *weight.shape, *bias.shape
        differentiated = torch.is_grad_enabled() and any(each.requires_grad for each in (x, weight, bias))
        size = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], self.padding, self.kernel_size, strict=True)]
        if (
            shapes != (self.in_channels, self.out_channels, self.in_channels, *self.kernel_size, self.out_channels)
            or min(size) < 1
            or not {x.dtype, given} <= {torch.float32, torch.bfloat16}
            or bias.dtype != given
            or (x.dtype != given and not torch.is_autocast_enabled("cpu"))
            or not (given == dtype == torch.float32 or (square and dtype == torch.bfloat16))
            or (differentiated and (not square or self.rectified))
            or not weight.is_contiguous(memory_format=torch.channels_last)
            or not bias.is_contiguous()
        ):
            return 0
        counts = {side: tiles(self.kernel_size, side, len(x), *size) for side in TILES.get(self.kernel_size, ())}
        if square and dtype == torch.bfloat16:
            del counts[2]  # no faster than torch
        elif square and 36 * counts[4] > 16 * counts[2]:  # multiplications: images smaller than the larger tiles
            del counts[4]
        return next((side for side, count in counts.items() if count >= FEWEST), 0)


def tiles(kernel: tuple[int, int], side: int, batch: int, height: int, width: int) -> int:
    """Number of those that cover a batch of results."""
    rows, columns = (-(-size // (side if taps > 1 else 1)) for size, taps in zip((height, width), kernel, strict=True))
    return batch * rows * columns


def _dtype(x: Tensor) -> torch.dtype:
    """In what a convolution of x computes."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class Winograd(torch.autograd.Function):
    """The convolution by the kernels: images in float32 or bfloat16, and weights in either."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int], side: int, rectified: bool = False
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.settings = padding, side
        return _images(x, weight, bias, padding, side, rectified)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        inputs = x, weight, _ = ctx.saved_tensors
        padding, side = ctx.settings
        if native.left_to_torch(dy):

            def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return F.conv2d(x.float(), weight.float(), bias.float(), padding=padding).to(x.dtype)

            return *native.gradients(convolution, inputs, ctx.needs_input_grad[:3], dy), None, None, None
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        c_out, c_in, *kernel = weight.shape
        over = tuple(taps - 1 - p for taps, p in zip(kernel, padding, strict=True))
        dx = _images(dy, weight, None, over, side) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *[None] * 5
        d_weight = torch.empty_like(weight, dtype=torch.float32)
        d_bias = d_weight.new_empty(len(weight))
        batch, _, height, width = dy.shape
        sizes = batch, height, width, c_in, c_out, *padding
        native.call("winograd_weight", side, x.dtype == torch.bfloat16, x, dy, d_weight, d_bias, *sizes)
        return dx, d_weight, d_bias, None, None, None


def _images(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], side: int, rectified: bool = False
) -> Tensor:
    """The convolution of images, or, without a bias, its transpose, of their gradients."""
    transposed = bias is None
    c_out, c_in, *kernel = weight.shape
    height, width = (n + 2 * p - taps + 1 for n, p, taps in zip(x.shape[2:], padding, kernel, strict=True))
    y = x.new_empty(len(x), height, width, c_in if transposed else c_out).permute(0, 3, 1, 2)
    half = x.dtype == torch.bfloat16, weight.dtype == torch.bfloat16
    sizes = len(x), height, width, c_in, c_out, *padding
    native.call("winograd", *kernel, side, *half, x, weight, bias, y, *sizes, transposed, rectified)
    return y
