"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020): an experiment framework."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and with it torch, on first access."""
    if name == "load":
        from ddpm.setup.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
