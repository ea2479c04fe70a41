"""Speed settings: bfloat16 on devices with native support, and custom kernels on a CPU."""

import copy

import torch
from torch import Tensor, nn

from ddpm.kernels import native
from ddpm.model.diffusion import Diffusion
from ddpm.setup.fused import fuse, replaced

SPEEDS = ("auto", "reference")


def check(speed: str) -> None:
    """Raise ValueError for an unknown setting."""
    if speed not in SPEEDS:
        raise ValueError(f"speed must be auto (fastest here) or reference (float32), got {speed!r}")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 multiplication."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def precision(speed: str, device: torch.device) -> str:
    """Lightning's precision for training; weights, their average and the optimizer's state are always float32."""
    check(speed)
    return "bf16-mixed" if speed == "auto" and bfloat16_is_fast(device) else "32-true"


def arrange(network: nn.Module, speed: str, device: torch.device) -> int:
    """Speed up a network in place: channels-last weights and custom kernels, if there are any for the device.

    Its results change only by rounding, and in which elements dropout drops.

    Returns:
        The number of layers that use custom kernels.
    """
    check(speed)
    if speed == "auto" and device.type == "cpu" and native.library() is not None:
        fuse(network.to(memory_format=torch.channels_last))
    return replaced(network)


class BFloat16(nn.Module):
    """A copy of a network that computes in bfloat16 where autocast does, and returns float32.

    The weights of its layers are rounded once, not on every call.
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
    """The model for sampling, with its network in bfloat16 if `speed` is auto and the device is fast with it."""
    check(speed)
    if speed == "auto" and bfloat16_is_fast(diffusion.process.times.device):
        return diffusion.with_network(BFloat16(diffusion.network))
    return diffusion
