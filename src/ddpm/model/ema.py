"""Exponential moving average of weights."""

import copy

import torch
from torch import nn


class EMA(nn.Module):
    """A network with averaged weights: w_ema <- decay w_ema + (1 - decay) w after each optimizer step.

    Parameters are averaged in their own precision (float32 in mixed-precision training); buffers are copied. The
    average starts as a copy of the network, so it can be used before the first update. The two are never swapped.

    Args:
        network: the network to average.
        decay: in [0, 1); Ho et al. use 0.9999.
        warm_up: limit the decay to (1 + k) / (10 + k) after k updates, so that short runs forget their
            initialisation.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999, warm_up: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be in [0, 1), got {decay}; Ho et al. use 0.9999")
        self.decay = decay
        self.warm_up = warm_up
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Update the average after one step of the network.

        Args:
            network: the network after the step.
            updates: number of earlier updates.
        """
        decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warm_up else self.decay
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for averaged, current in zip(self.network.buffers(), network.buffers(), strict=True):
            averaged.copy_(current)

    def train(self, mode: bool = True) -> "EMA":
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)
