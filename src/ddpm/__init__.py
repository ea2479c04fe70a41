"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020): an experiment framework."""

from ddpm.checkpoint import load

__all__ = ["load"]
