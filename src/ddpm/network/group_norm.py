"""Group normalisation with what surrounds it in a residual block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddpm.network import native


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
        dropout = self.dropout if self.training else 0.0
        if x.dtype in (torch.float32, torch.bfloat16) and self.weight.dtype == torch.float32 and native.serves(x):
            settings = self.num_groups, self.eps, self.silu, dropout
            return Fused.apply(x, shift, self.weight, self.bias, *settings)
        h = super().forward(x if shift is None else x + shift[:, :, None, None])
        return F.dropout(F.silu(h) if self.silu else h, dropout, self.training)


class Fused(torch.autograd.Function):
    """GroupNorm by the kernel. What is dropped is a function of a seed, so that no mask is kept for the gradient."""

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
        batch, channels, height, width = x.shape
        shift = None if shift is None else shift.float().contiguous()
        seed = int(torch.randint(2**62, ())) if dropout else 0
        half = x.dtype == torch.bfloat16
        y = torch.empty_like(x)
        moments = x.new_empty(2, batch, groups, dtype=torch.float32)
        sizes = batch, height * width, channels, groups
        native.call("group_norm", half, x, shift, weight, bias, y, *moments, *sizes, eps, silu, float(dropout), seed)
        ctx.save_for_backward(x, shift, weight, bias, moments)
        ctx.settings = *sizes, silu, float(dropout), seed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, moments = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        sums = x.new_empty(3, len(x), x.shape[1], dtype=torch.float32)
        half = x.dtype == torch.bfloat16
        native.call("group_norm_backward", half, x, dy, shift, weight, bias, *moments, dx, *sums, *ctx.settings)
        d_weight, d_bias = sums[1:].sum(1)
        return dx, None if shift is None else sums[0], d_weight, d_bias, None, None, None, None
