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
        """Variances of the steps, float64, shape (T,), each in (0, 1); the last may be 1."""


@dataclass(frozen=True)
class Between(Schedule):
    """A schedule that rises from beta_1 in (0, 1) to beta_T in (0, 1]."""

    beta_1: float = 1e-4
    beta_T: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, fits in (
            ("beta_1 must be in (0, 1)", self.beta_1, 0 < self.beta_1 < 1),
            ("beta_T must be in (0, 1]", self.beta_T, 0 < self.beta_T <= 1),
        ):
            if not fits:
                raise ValueError(f"{name}, got {value}; Ho et al. use beta_1 = 1e-4 and beta_T = 0.02 for T = 1000")
