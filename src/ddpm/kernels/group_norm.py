"""Group normalisation with what surrounds it in a residual block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.kernels import native


class GroupNorm(nn.GroupNorm):
    """dropout(silu(normalise(x + shift))): (B, C, H, W), (B, C) -> (B, C, H, W).

    torch's own normalisation is slow on a CPU where channels lie innermost, the layout that convolutions like best;
    there all of this is one kernel.

    Args:
        groups: divides the channels.
        channels: C.
        silu: whether the nonlinearity follows.
        dropout: probability, in [0, 1); in training only.
    """

    def __init__(self, groups: int, channels: int, silu: bool = True, dropout: float = 0.0) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.silu = silu
        self.dropout = dropout

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """The kernel returns the type of x, also where a shift in float32 would make torch return that."""
        dropout = self.dropout if self.training else 0.0
        if self._by_kernel(x, shift, dropout):
            shift = None if shift is None else shift.float().contiguous()
            return Fused.apply(x, shift, self.weight, self.bias, self.num_groups, self.eps, self.silu, dropout)
        y = normalised(x, shift, self.weight, self.bias, self.num_groups, self.eps, self.silu)
        return F.dropout(y, self.dropout, self.training)

    def _by_kernel(self, x: Tensor, shift: Tensor | None, dropout: float) -> bool:
        """Whether the kernel computes it; else torch does, or refuses to."""
        given = () if shift is None else (shift,)
        return (
            native.serves(x, self.weight, self.bias, *given)
            and x.dtype in (torch.float32, torch.bfloat16)
            and x.shape[1] == self.num_channels
            and all(
                each.dtype == torch.float32 and each.shape == (self.num_channels,) and each.is_contiguous()
                for each in (self.weight, self.bias)
            )
            and all(each.shape == x.shape[:2] and each.dtype in (torch.float32, torch.bfloat16) for each in given)
            and 0 <= dropout < 1
        )


def normalised(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """silu(normalise(x + shift)), or without the nonlinearity, by torch."""
    h = F.group_norm(x if shift is None else x + shift[:, :, None, None], groups, weight, bias, eps)
    return F.silu(h) if silu else h


class Fused(torch.autograd.Function):
    """GroupNorm by the kernel, of a shift in float32.

    What is dropped is a function of a seed, so that no mask is kept for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        silu: bool,
        dropout: float,
    ) -> Tensor:
        seed = int(torch.randint(2**62, ())) if dropout else 0
        y, moments = _forward(x, shift, weight, bias, groups, eps, silu, dropout, seed)
        ctx.save_for_backward(x, shift, weight, bias, moments)
        ctx.settings = groups, eps, silu, dropout, seed
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, moments = ctx.saved_tensors
        x, shift, weight, bias = inputs
        groups, eps, silu, dropout, seed = ctx.settings
        if native.left_to_torch(dy):
            zeros, ones = torch.zeros_like(x, dtype=torch.float32), torch.ones_like(bias)
            kept, _ = _forward(zeros, None, torch.zeros_like(weight), ones, groups, eps, False, dropout, seed)

            def operation(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
                return (normalised(x.float(), shift, weight, bias, groups, eps, silu) * kept).to(x.dtype)

            return *native.gradients(operation, inputs, ctx.needs_input_grad[:4], dy), None, None, None, None
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        sums = x.new_empty(3, len(x), x.shape[1], dtype=torch.float32)
        half = x.dtype == torch.bfloat16
        settings = *_sizes(x), groups, silu, float(dropout), seed
        native.call("group_norm_backward", half, x, dy, shift, weight, bias, *moments, dx, *sums, *settings)
        d_weight, d_bias = sums[1:].sum(1)
        return dx, None if shift is None else sums[0], d_weight, d_bias, None, None, None, None


def _forward(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The result, and mean and reciprocal deviation of the groups, (2, B, groups)."""
    half = x.dtype == torch.bfloat16
    y = torch.empty_like(x)
    moments = x.new_empty(2, len(x), groups, dtype=torch.float32)
    settings = *_sizes(x), groups, eps, silu, float(dropout), seed
    native.call("group_norm", half, x, shift, weight, bias, y, *moments, *settings)
    return y, moments


def _sizes(x: Tensor) -> tuple[int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels
