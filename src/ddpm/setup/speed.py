"""What a device is fast with: bfloat16 where it computes with that, and custom kernels on a CPU."""

import copy

import torch
from torch import Tensor, nn

from ddpm.kernels import native
from ddpm.model.diffusion import Diffusion
from ddpm.setup.fused import fuse, replaced

SPEEDS = ("auto", "reference")


def check(speed: str) -> None:
    """Raises ValueError unless there is such a setting."""
    if speed not in SPEEDS:
        raise ValueError(f"speed must be auto (what is fast here) or reference (float32), got {speed!r}")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def precision(speed: str, device: torch.device) -> str:
    """Lightning's name of the arithmetic to train in; weights, their average and the optimizer are float32 anyway."""
    check(speed)
    return "bf16-mixed" if speed == "auto" and bfloat16_is_fast(device) else "32-true"


def arrange(network: nn.Module, speed: str, device: torch.device) -> int:
    """Make a network fast, in place: channels-last weights and custom kernels, if there are any for the device.

    What it computes changes by rounding only, and in which elements dropout drops.

    Returns:
        the number of layers that compute by custom kernels.
    """
    check(speed)
    if speed == "auto" and device.type == "cpu" and native.library() is not None:
        fuse(network.to(memory_format=torch.channels_last))
    return replaced(network)


class BFloat16(nn.Module):
    """A copy of a network that computes in bfloat16 where autocast does, and returns float32.

    The weights of its layers are rounded once, not at every call.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        for layer in self.network.modules():
            if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
                layer.bfloat16()

    def forward(self, x_t: Tensor, t: Tensor, *label: Tensor) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return self.network(x_t, t, *label).float()


def sampling(diffusion: Diffusion, speed: str) -> Diffusion:
    """The model to sample from: its network in bfloat16 if that is asked for and fast, all else as it is."""
    check(speed)
    if speed == "auto" and bfloat16_is_fast(diffusion.process.times.device):
        return diffusion.with_network(BFloat16(diffusion.network))
    return diffusion
