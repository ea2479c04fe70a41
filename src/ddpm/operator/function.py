"""A user-defined function as operator."""

import pkgutil
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.operator.base import Operator


class Function(Operator):
    """y = f(x), for any differentiable f from (B, C, H, W) to (B, ...).

    Args:
        function: import path of f, such as `my_package.my_module.degrade`.
    """

    def __init__(self, function: str) -> None:
        try:
            self.function = pkgutil.resolve_name(function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"operator.function={function} cannot be imported: {error}") from error

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def picture(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        fits = y.dim() == 4 and y.shape[1] in (1, shape[0])
        return super().picture(y, shape) if fits else torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device)
