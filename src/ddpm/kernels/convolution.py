"""Winograd convolution: fewer multiplications than direct convolution (Lavin and Gray 2016, arXiv:1509.09308)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from ddpm.kernels import native

TILES = {(3, 3): (4, 2), (5, 5): (2,), (1, 7): (3,), (7, 1): (3,), (1, 3): (4,), (3, 1): (4,)}
"""Tile sizes, best first, for each supported kernel size: outputs along every axis with more than one tap."""
TYPES = torch.float32, torch.bfloat16
FEWEST = 32
"""Smallest number of tiles in a batch for which transforming the weights pays off."""
SIZES = "batch height width c_in c_out pad_y pad_x"
CONVOLUTION = native.Kernel(
    "winograd",
    "x weight bias y",
    f"kernel_height kernel_width tile {SIZES}",
    flags="half_images half_weights transposed rectified",
)
WEIGHT_GRADIENT = native.Kernel(
    "winograd_weight_gradient", "x dy d_weight d_bias", f"tile {SIZES}", flags="half_images"
)


class Convolution(nn.Conv2d):
    """nn.Conv2d of stride 1 that uses the Winograd kernels on a CPU for large enough batches in channels-last.

    3x3 kernels need up to four times fewer multiplications than direct convolution; 5x5, 1x7, 7x1, 1x3 and 3x1 kernels,
    which have no Winograd gradients, need 1.75 to 2.8 times fewer. The arithmetic is float32 for every image dtype. A
    non-finite pixel makes all outputs of the tiles that read it non-finite.
    """

    rectified = False
    """Whether a ReLU follows."""
    kernel_size: tuple[int, int]
    padding: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        tile = self._tile(x, dtype)
        if tile:
            return winograd(x.to(dtype), self.weight, self.bias, self.padding, tile, self.rectified)
        y = super().forward(x)
        return y.relu_() if self.rectified else y

    def _tile(self, x: Tensor, dtype: torch.dtype) -> int:
        """Tile size for images x computed in dtype; 0 if no size pays off, or if torch should reject the input."""
        if (
            not (serves(self) and native.channels_last(x))
            or not fits(x, self.weight, self.bias, self.padding, dtype)
            or (*self.weight.shape[2:],) != self.kernel_size
            or (x.dtype != self.weight.dtype and not torch.is_autocast_enabled("cpu"))
        ):
            return 0
        batch, kernel, size = len(x), self.kernel_size, _size(x, self.weight, self.padding)
        counts = {side: tiles(kernel, side, batch, *size) for side in TILES[kernel]}
        if kernel == (3, 3) and dtype == torch.bfloat16:
            del counts[2]  # no faster than torch
        elif kernel == (3, 3) and 36 * counts[4] > 16 * counts[2]:  # small images: large tiles multiply more
            del counts[4]
        return next((side for side, count in counts.items() if count >= FEWEST), 0)


class Rectified(Convolution):
    """A convolution followed by a ReLU."""

    rectified = True


def serves(layer: nn.Conv2d) -> bool:
    """Whether `Convolution` can replace a layer."""
    return (
        layer.kernel_size in TILES
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.in_channels % 16 == layer.out_channels % 16 == 0
        and layer.bias is not None
    )


def tiles(kernel: tuple[int, int], side: int, batch: int, height: int, width: int) -> int:
    """Number of tiles that cover a batch of outputs."""
    rows = height if kernel[0] == 1 else -(-height // side)
    return batch * rows * (width if kernel[1] == 1 else -(-width // side))


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernels can convolve images x in this dtype."""
    return (
        bias is not None
        and _fit(x, weight, 1, padding, dtype)
        and bias.device.type == "cpu"
        and bias.shape == weight.shape[:1]
        and bias.dtype == weight.dtype
    )


def _fit(x: Tensor, weight: Tensor, channels: int, padding: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a kernel exists for these weights, whose axis `channels` must match the channels of x."""
    if not (x.device.type == weight.device.type == "cpu" and x.dim() == weight.dim() == 4 and x.numel() > 0):
        return False
    c_out, c_in, rows, columns = weight.shape
    given = weight.dtype
    return (
        (int(rows), int(columns)) in TILES  # concrete numbers, even from symbolic shapes
        and x.shape[1] == weight.shape[channels]
        and c_in % 16 == c_out % 16 == 0
        and min(_size(x, weight, padding)) > 0
        and x.dtype in TYPES
        and (dtype == given == torch.float32 or (rows == columns == 3 and given in TYPES and dtype in TYPES))
    )


def _size(x: Tensor, weight: Tensor, padding: Sequence[int]) -> list[int]:
    """Height and width of the outputs."""
    (_, _, height, width), (_, _, rows, columns) = x.shape, weight.shape
    return [height + 2 * padding[0] - rows + 1, width + 2 * padding[1] - columns + 1]


def _images(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Uninitialised channels-last images."""
    return x.new_empty(len(x), *size, channels).permute(0, 3, 1, 2)


def _outputs(x: Tensor, weight: Tensor, bias: Tensor, padding: list[int], tile: int, rectified: bool) -> Tensor:
    native.require(fits(x, weight, bias, padding, x.dtype), "winograd", x, weight, bias)
    return _images(x, len(weight), _size(x, weight, padding))


def _of_images(dy: Tensor, weight: Tensor, padding: list[int], tile: int) -> Tensor:
    over = _over(weight, padding)
    native.require(_fit(dy, weight, 0, over, dy.dtype), "winograd_image_gradient", dy, weight)
    return _images(dy, weight.shape[1], _size(dy, weight, over))


def _of_weights(x: Tensor, dy: Tensor, padding: list[int], tile: int) -> tuple[Tensor, Tensor]:
    fit = x.device.type == dy.device.type == "cpu" and x.dim() == dy.dim() == 4 and x.dtype == dy.dtype in TYPES
    batch, c_in, height, width = x.shape if fit else [0] * 4
    c_out = dy.shape[1] if fit else 0
    fit = fit and x.numel() > 0 and dy.numel() > 0 and c_in % 16 == c_out % 16 == 0
    fit = fit and dy.shape == (batch, c_out, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    native.require(fit, "winograd_weight_gradient", x, dy)
    d_weight = x.new_empty(c_out, 3, 3, c_in, dtype=torch.float32).permute(0, 3, 1, 2)
    return d_weight, d_weight.new_empty(c_out)


def _over(weight: Tensor, padding: Sequence[int]) -> list[int]:
    """Padding of the transposed convolution."""
    return [weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1]]


def _winograd(x: Tensor, weight: Tensor, bias: Tensor, padding: list[int], tile: int, rectified: bool) -> Tensor:
    y = _outputs(x, weight, bias, padding, tile, rectified)
    _convolve(x, weight, bias.contiguous(), y, padding, tile, rectified)
    return y


def _image_gradient(dy: Tensor, weight: Tensor, padding: list[int], tile: int) -> Tensor:
    dx = _of_images(dy, weight, padding, tile)
    _convolve(dy, weight, None, dx, _over(weight, padding), tile, False)
    return dx


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, padding: list[int], tile: int, rectified: bool
) -> None:
    """Convolve images, or, without a bias, apply the transposed convolution to their gradients."""
    CONVOLUTION(
        x=x.contiguous(memory_format=torch.channels_last),
        weight=weight.contiguous(memory_format=torch.channels_last),
        bias=bias,
        y=y,
        kernel_height=weight.shape[2],
        kernel_width=weight.shape[3],
        tile=tile,
        batch=len(y),
        height=y.shape[2],
        width=y.shape[3],
        c_in=weight.shape[1],
        c_out=weight.shape[0],
        pad_y=padding[0],
        pad_x=padding[1],
        half_images=x.dtype == torch.bfloat16,
        half_weights=weight.dtype == torch.bfloat16,
        transposed=bias is None,
        rectified=rectified,
    )


def _weight_gradient(x: Tensor, dy: Tensor, padding: list[int], tile: int) -> tuple[Tensor, Tensor]:
    d_weight, d_bias = _of_weights(x, dy, padding, tile)
    WEIGHT_GRADIENT(
        x=x.contiguous(memory_format=torch.channels_last),
        dy=dy.contiguous(memory_format=torch.channels_last),
        d_weight=d_weight,
        d_bias=d_bias,
        tile=tile,
        batch=len(dy),
        height=dy.shape[2],
        width=dy.shape[3],
        c_in=x.shape[1],
        c_out=dy.shape[1],
        pad_y=padding[0],
        pad_x=padding[1],
        half_images=x.dtype == torch.bfloat16,
    )
    return d_weight, d_bias


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], transposed: bool = False
) -> Tensor:
    """PyTorch's convolution in float32; autocast does not apply to `torch.convolution`."""
    bias = None if bias is None else bias.float()
    return torch.convolution(x.float(), weight.float(), bias, [1, 1], padding, [1, 1], transposed, [0, 0], 1)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor, padding: list[int], tile: int, rectified: bool) -> Tensor:
    y = _convolution(x, weight, bias, padding).to(x.dtype)
    return y.relu() if rectified else y


def _image_gradient_by_torch(dy: Tensor, weight: Tensor, padding: list[int], tile: int) -> Tensor:
    return _convolution(dy, weight, None, padding, transposed=True).to(dy.dtype)


def _weight_gradient_by_torch(x: Tensor, dy: Tensor, padding: list[int], tile: int) -> tuple[Tensor, Tensor]:
    d_weight = _convolution(x.transpose(0, 1), dy.transpose(0, 1), None, padding).transpose(0, 1)
    return d_weight, dy.float().sum((0, 2, 3))


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor, padding: list[int], tile: int, rectified: bool) -> Tensor:
    if rectified or weight.shape[2:] != (3, 3):
        return _by_torch(x, weight, bias, padding, tile, rectified)
    return Differentiable.apply(x, weight, bias, padding, tile)


class Differentiable(torch.autograd.Function):
    """The operator with its gradient, for 3x3 kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: list[int], tile: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = padding, tile
        with torch._C._AutoDispatchBelowAutograd():
            return winograd(x, weight, bias, padding, tile, False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.to(x.dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last, for both gradients
        dx = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            dx = native.without_gradient(winograd_image_gradient, dy, weight, *ctx.settings)
        if any(ctx.needs_input_grad[1:]):
            d_weight, d_bias = native.without_gradient(winograd_weight_gradient, x, dy, *ctx.settings)
        return dx, d_weight, d_bias, None, None


winograd = native.operator(
    "winograd(Tensor x, Tensor weight, Tensor bias, int[] padding, int tile, bool rectified) -> Tensor",
    _winograd,
    _outputs,
    _by_torch,
    _differentiable,
)
winograd_image_gradient = native.operator(
    "winograd_image_gradient(Tensor dy, Tensor weight, int[] padding, int tile) -> Tensor",
    _image_gradient,
    _of_images,
    _image_gradient_by_torch,
)
winograd_weight_gradient = native.operator(
    "winograd_weight_gradient(Tensor x, Tensor dy, int[] padding, int tile) -> (Tensor, Tensor)",
    _weight_gradient,
    _of_weights,
    _weight_gradient_by_torch,
)


# FLOPs are counted as for direct convolution, as torch does for its own convolutions.


@register_flop_formula(torch.ops.ddpm.winograd)
def _operations(x: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


@register_flop_formula(torch.ops.ddpm.winograd_image_gradient)
def _operations_of_images(dy: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return conv_flop_count(dy, weight, out_shape, transposed=True)


@register_flop_formula(torch.ops.ddpm.winograd_weight_gradient)
def _operations_of_weights(x: list[int], dy: list[int], *_: Any, out_shape: list[list[int]], **__: Any) -> int:
    return conv_flop_count(x, out_shape[0], dy)
