"""Float64 tables over the times 0..T, and functions to read them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Tables(nn.Module):
    """Float64 buffers that follow the module's device but never its dtype.

    Rounding 1 - alpha_bar_1 to float32 costs 1.7e-4, so tables stay in float64 when the model is cast, and are
    cast only after the gather. They are not saved, because the schedule rebuilds them.
    """

    def add_table(self, name: str, values: Tensor) -> None:
        """Register `values`, shape (T + 1,), under `name`."""
        self.register_buffer(name, values.double(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Tables":
        if recurse:
            for child in self.children():
                child._apply(fn)  # type: ignore[no-untyped-call]
        for name, table in self._buffers.items():
            if table is not None:
                self._buffers[name] = table.to(fn(table).device)
        return self


def gather(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] in the dtype of `like`, shape (B, 1, ...) so that it broadcasts over `like`, shape (B, ...)."""
    return table[t].to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def same(step: int, x: Tensor) -> Tensor:
    """`step` expanded to the times of a batch x, shape (B,), stored as a single number."""
    return torch.full((1,), step, device=x.device).expand(len(x))


def distinct(t: Tensor) -> Tensor:
    """`t`, shape (B,), reduced to shape (1,) if it is an expanded single number, as from `same`; otherwise t."""
    return t[:1] if t.stride(0) == 0 else t


def over_time(values: Tensor) -> Tensor:
    """Extend values for t = 1..T, shape (T,), to a table of length T + 1 that holds nan at t = 0."""
    return torch.cat([values.new_full((1,), torch.nan), values])


class Affine(Tables):
    """The map (y, x_t) -> k_y[t] y + k_x[t] x_t, with coefficients composed in float64."""

    k_y: Tensor
    k_x: Tensor

    def __init__(self, k_y: Tensor, k_x: Tensor) -> None:
        super().__init__()
        self.add_table("k_y", k_y)
        self.add_table("k_x", k_x)

    def forward(self, y: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return gather(self.k_y, t, x_t) * y + gather(self.k_x, t, x_t) * x_t
