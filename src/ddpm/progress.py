"""Progress of long work."""

from types import TracebackType

from tqdm import tqdm


class Steps:
    """A bar that counts calls and disappears when the work is done.

    Args:
        what: the work, a word or two.
        total: number of calls to come; None if it is not known.
        show: whether to show it.
    """

    def __init__(self, what: str, total: int | None, show: bool = True) -> None:
        self.bar = tqdm(total=total, desc=what, leave=False, disable=not show, dynamic_ncols=True, mininterval=0.5)

    def __enter__(self) -> "Steps":
        return self

    def __call__(self) -> None:
        self.bar.update()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
