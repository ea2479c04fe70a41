"""Group normalisation fused with its neighbours in a residual block."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.kernels import native

FORWARD = native.Kernel(
    "group_norm", "x shift weight bias y moments seed", "batch pixels channels groups", "eps dropout", "half silu"
)
BACKWARD = native.Kernel(
    "group_norm_backward",
    "x dy shift weight bias moments dx sums seed",
    "batch pixels channels groups",
    "dropout",
    "half silu",
)
MASK = 2**32 - 1
TYPES = torch.float32, torch.bfloat16


class Settings(NamedTuple):
    """Settings of the operators, passed after their input tensors.

    Args:
        groups: number of groups, which divides the channels.
        eps: added to the variances.
        silu: whether SiLU follows.
        dropout: probability, in [0, 1).
        seed: seed of the dropout mask, below 2^62; None without dropout. The gradient redraws the mask from it.
    """

    groups: int
    eps: float
    silu: bool
    dropout: float
    seed: Tensor | None


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that uses the fused kernel on a CPU for channels-last images."""

    def forward(self, x: Tensor, shift: Tensor | None = None, silu: bool = False, dropout: float = 0.0) -> Tensor:
        """dropout(silu(normalise(x + shift))): (B, C, H, W), (B, C) -> (B, C, H, W).

        The kernel returns the dtype of x, even where a float32 shift would make torch return float32.
        """
        if native.channels_last(x) and fits(x, shift, self.weight, self.bias, self.num_groups, dropout):
            seed = torch.randint(2**62, (), device="cpu") if dropout else None
            settings = Settings(self.num_groups, self.eps, silu, dropout, seed)
            return group_norm(x, shift, self.weight, self.bias, *settings)[0]
        h = super().forward(x if shift is None else x + shift[:, :, None, None])
        return F.dropout(F.silu(h) if silu else h, dropout)


def fits(
    x: Tensor, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, groups: int, dropout: float
) -> bool:
    """Whether the kernels support these arguments."""
    if weight is None or bias is None:
        return False
    return (
        x.device.type == weight.device.type == bias.device.type == "cpu"
        and x.dim() == 4
        and x.numel() > 0
        and x.dtype in TYPES
        and weight.shape == bias.shape == x.shape[1:2]
        and weight.dtype == bias.dtype == torch.float32
        and (shift is None or (shift.device.type == "cpu" and shift.shape == x.shape[:2] and shift.dtype in TYPES))
        and groups > 0
        and x.shape[1] % groups == 0
        and 0 <= dropout < 1
    )


def _outputs(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Uninitialised result, and mean and reciprocal standard deviation per group, (2, B, groups)."""
    native.require(fits(x, shift, weight, bias, groups, rest[0]), "group_norm", x, shift, weight, bias)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    return y, x.new_empty(2, len(x), groups, dtype=torch.float32)


def _gradients(
    dy: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, moments: Tensor, groups: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Uninitialised gradient of x, and gradients of shift, weight and bias per image, (3, B, C)."""
    fit = fits(x, shift, weight, bias, groups, rest[2]) and dy.device.type == moments.device.type == "cpu"
    fit = fit and (dy.shape, dy.dtype, moments.dtype) == (x.shape, x.dtype, torch.float32)
    fit = fit and moments.shape == (2, len(x), groups)
    native.require(fit, "group_norm_backward", dy, x, shift, weight, bias, moments)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, x.new_empty(3, *x.shape[:2], dtype=torch.float32)


def _forward(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    y, moments = _outputs(x, shift, weight, bias, *settings)
    given = Settings(*settings)
    FORWARD(**_arguments(x, shift, weight, bias, given), y=y, moments=moments, eps=given.eps)
    return y, moments


def _backward(
    dy: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, moments: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    dx, sums = _gradients(dy, x, shift, weight, bias, moments, *settings)
    dy, moments = dy.contiguous(memory_format=torch.channels_last), moments.contiguous()
    BACKWARD(**_arguments(x, shift, weight, bias, Settings(*settings)), dy=dy, moments=moments, dx=dx, sums=sums)
    return dx, sums


def _arguments(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, settings: Settings) -> dict[str, Any]:
    """Arguments shared by both kernels."""
    seed = settings.seed
    if settings.dropout and (
        seed is None or seed.dtype != torch.int64 or seed.numel() != 1 or seed.device.type != "cpu"
    ):
        raise RuntimeError("dropout needs a seed: one int64 number on the CPU")
    return {
        "x": x.contiguous(memory_format=torch.channels_last),
        "shift": None if shift is None else shift.float().contiguous(),
        "weight": weight.contiguous(),
        "bias": bias.contiguous(),
        "batch": len(x),
        "pixels": x.shape[2] * x.shape[3],
        "channels": x.shape[1],
        "groups": settings.groups,
        "half": x.dtype == torch.bfloat16,
        "silu": settings.silu,
        "dropout": settings.dropout,
        "seed": seed,
    }


def _forward_by_torch(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    given = Settings(*settings)
    x_hat, mean, rstd = _standardised(x, shift, given)
    z = x_hat * weight[:, None, None] + bias[:, None, None]
    y = F.silu(z) if given.silu else z
    y = y * kept(x, given.dropout, given.seed) if given.seed is not None else y
    return y.to(x.dtype), torch.stack([mean.flatten(1), rstd.flatten(1)])


def _backward_by_torch(
    dy: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, moments: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """Recomputes mean and deviation from x, so that gradients flow through them."""
    given = Settings(*settings)
    x_hat, _, rstd = _standardised(x, shift, given)
    dz = dy.float() * kept(x, given.dropout, given.seed) if given.seed is not None else dy.float()
    if given.silu:
        z = x_hat * weight[:, None, None] + bias[:, None, None]
        s = z.sigmoid()
        dz = dz * (s * (1 + z * (1 - s)))
    slope, along = (_groups(each * weight[:, None, None], given.groups) for each in (dz, dz * x_hat))
    by_x_hat = slope - slope.mean((2, 3), True) - _groups(x_hat, given.groups) * along.mean((2, 3), True)
    dx = (rstd * by_x_hat).reshape(x.shape)
    return dx.to(x.dtype), torch.stack([each.sum((2, 3)) for each in (dx, dz * x_hat, dz)])


def _standardised(x: Tensor, shift: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised x + shift, and mean and reciprocal standard deviation per group, (B, groups, 1, 1)."""
    h = _groups(x.float() if shift is None else x.float() + shift[:, :, None, None], settings.groups)
    mean = h.mean((2, 3), True)
    rstd = (h.var((2, 3), correction=0, keepdim=True) + settings.eps).rsqrt()
    return ((h - mean) * rstd).reshape(x.shape), mean, rstd


def _groups(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> (B, groups, C / groups, H W)."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height * width)


def kept(x: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """Scaled dropout mask of x, 0 or 1 / (1 - dropout), as drawn by `Dropout` in group_norm.cpp."""

    def mixed(h: Tensor) -> Tensor:
        h = (h ^ (h >> 16)) * 0x7FEB352D & MASK
        h = (h ^ (h >> 15)) * 0x846CA68B & MASK
        return h ^ (h >> 16)

    batch, channels, height, width = x.shape
    element = torch.arange(batch * height * width * channels, device=x.device)
    element = element.view(batch, height, width, channels).permute(0, 3, 1, 2)
    h = mixed(mixed(element + seed & MASK) + (seed >> 32) & MASK)
    return (h >= int(dropout * 2**32)).float() * (1 / (1 - dropout))


class Differentiable(torch.autograd.Function):
    """The operator with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, moments = group_norm(*arguments)
        x, shift, weight, bias, *settings = arguments
        *settings, seed = settings
        ctx.save_for_backward(x, shift, weight, bias, moments, seed)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        return y, moments

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, seed = ctx.saved_tensors
        dy = dy.to(inputs[0].dtype)
        dx, sums = native.without_gradient(group_norm_backward, dy, *inputs, *ctx.settings, seed)
        d_shift = sums[0] if ctx.needs_input_grad[1] else None
        return dx, d_shift, *sums[1:].sum(1), *[None] * 5


SETTINGS = "int groups, float eps, bool silu, float dropout, Tensor? seed"
group_norm = native.operator(
    f"group_norm(Tensor x, Tensor? shift, Tensor weight, Tensor bias, {SETTINGS}) -> (Tensor y, Tensor moments)",
    _forward,
    _outputs,
    _forward_by_torch,
    Differentiable.apply,
)
group_norm_backward = native.operator(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? shift, Tensor weight, Tensor bias, Tensor moments, "
    f"{SETTINGS}) -> (Tensor dx, Tensor sums)",
    _backward,
    _gradients,
    _backward_by_torch,
)
