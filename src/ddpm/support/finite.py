"""Refusal of values that are not finite numbers, before anything is made of them."""

from torch import Tensor


def finite(values: Tensor, what: str) -> Tensor:
    """The same values.

    Args:
        values: any shape.
        what: they are, in the plural.
    Raises:
        ValueError: some are NaN or infinite.
    """
    wrong = ~values.isfinite()
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum()):,} of {wrong.numel():,} values of the {what} are not finite numbers: the weights are "
            f"damaged, or the computation diverges; take another checkpoint, or more steps, or less guidance or "
            f"solver.scale"
        )
    return values
