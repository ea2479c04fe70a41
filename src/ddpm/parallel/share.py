"""How indexed work is divided among processes."""

from typing import NamedTuple


class Share(NamedTuple):
    """A process's rank and the world size; it takes the indices rank, rank + world, ..."""

    rank: int = 0
    world: int = 1

    def of(self, n: int) -> range:
        """This process's share of the indices 0..n-1."""
        return range(self.rank, n, self.world)


ALONE = Share()
"""The share of a single process."""
