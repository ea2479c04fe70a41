"""Check that values are finite before they are used."""

from torch import Tensor


def finite(values: Tensor, what: str) -> Tensor:
    """Return `values` if all of them are finite.

    Args:
        values: any shape.
        what: what they are, in the plural, for the error.
    Raises:
        ValueError: some are NaN or infinite.
    """
    wrong = ~values.isfinite()
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum()):,} of {wrong.numel():,} values of the {what} are not finite numbers: the weights are "
            f"damaged, or the computation diverges; use another checkpoint, more steps, less guidance, or a smaller "
            f"solver.scale"
        )
    return values
