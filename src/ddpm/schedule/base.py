"""The variances beta_1..beta_T of the forward process."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """beta_t for t = 1..T."""

    T: int = 1000

    def __post_init__(self) -> None:
        if self.T < 1:
            raise ValueError(f"T must be at least 1, got {self.T}; Ho et al. use 1000")

    @abstractmethod
    def beta(self) -> Tensor:
        """Variances of the steps, float64, shape (T,), each in (0, 1)."""


@dataclass(frozen=True)
class Between(Schedule):
    """A schedule that rises from beta_1 to beta_T."""

    beta_1: float = 1e-4
    beta_T: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("beta_1", self.beta_1), ("beta_T", self.beta_T)):
            if not 0 < value < 1:
                raise ValueError(
                    f"{name} must be in (0, 1), got {value}; Ho et al. use beta_1 = 1e-4 and beta_T = 0.02 for T = 1000"
                )
