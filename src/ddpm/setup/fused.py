"""Networks with custom kernels: classes with the same parameters, state and hooks that use `ddpm.kernels`."""

from torch import Tensor, nn

from ddpm.kernels.convolution import Convolution, serves
from ddpm.kernels.group_norm import GroupNorm
from ddpm.network.layers import ResidualBlock
from ddpm.network.unet import UNet


class FusedResidualBlock(ResidualBlock):
    """The block with shift, normalisation, nonlinearity and dropout in one kernel."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_1(self.norm_1(x, silu=True))
        shift = self.time(embedding).expand(len(h), -1)
        dropout = self.dropout.p if self.dropout.training else 0.0
        h = self.conv_2(self.norm_2(h, shift, silu=True, dropout=dropout))
        return self.shortcut(x) + h


class FusedUNet(UNet):
    """The U-Net with its last normalisation and nonlinearity in one kernel."""

    def output(self, h: Tensor) -> Tensor:
        return self.conv_out(self.norm_out(h, silu=True))


FUSED: dict[type[nn.Module], type[nn.Module]] = {ResidualBlock: FusedResidualBlock, UNet: FusedUNet}
"""Blocks that fuse their normalisations with the operations that follow."""


def fuse(network: nn.Module) -> None:
    """Change the classes of the layers that have kernels, in place."""
    for module in [*network.modules()]:
        norms = [each for name, each in module.named_children() if name.startswith("norm")]
        if type(module) in FUSED and all(type(each) is nn.GroupNorm for each in norms):
            module.__class__ = FUSED[type(module)]
        elif type(module) is nn.Conv2d and serves(module):
            module.__class__ = Convolution
        elif type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm


def replaced(network: nn.Module) -> int:
    """The number of layers that use custom kernels."""
    return sum(isinstance(module, (Convolution, GroupNorm)) for module in network.modules())
