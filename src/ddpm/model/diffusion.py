"""The model: a network on a process, interpreted by a parameterization and a variance."""

import copy
from typing import Protocol, Self

from torch import Tensor, nn

from ddpm.chain import spacing
from ddpm.chain.gaussian import Gaussian
from ddpm.chain.process import Process
from ddpm.chain.tables import distinct
from ddpm.model.conditional import CONDITIONAL, Given, Guidance
from ddpm.model.prediction import Clip, Prediction
from ddpm.parameterization.base import Parameterization
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.x0 import X0
from ddpm.variance.base import Variance


class Output(Protocol):
    """The network's output as a function of images, original times and classes; see `Diffusion.output`."""

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None, /) -> Tensor: ...


class Diffusion(nn.Module):
    """p(x_{t-1} | x_t) and the discretised decoder p(x_0 | x_1) of Ho et al. 2020, section 3.

    Args:
        network: maps (c_in x_t, c_noise), or (c_in x_t, c_noise, label) with classes, to
            C * (1 + variance.extra_channels) channels; the parameterization defines c_in and c_noise.
        process: the forward process, possibly respaced.
        parameterization: what the network's first C channels predict.
        variance: sigma_t^2, fixed or read from the remaining channels.
        levels: K, the number of grey levels of the data.
        classes: number of classes, 0 for an unconditional network. The label `classes`, or None, means no class.
    Raises:
        ValueError: the parameterization cannot recover the image at the end of the chain.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        variance: Variance,
        levels: int = 256,
        classes: int = 0,
    ) -> None:
        super().__init__()
        parameterization.check(process)
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.variance = variance
        self.levels = levels
        self.classes = classes
        self.replaced: Output | None = None
        self.to_x_0 = parameterization.to(X0(), process)
        self.to_eps = parameterization.to(Eps(), process)
        self.eps_from_x_0 = X0().to(Eps(), process)
        self.target = X0().to(parameterization, process)
        self.to_mean = parameterization.to_mean(process)

    @property
    def T(self) -> int:
        """Number of steps of the chain."""
        return self.process.T

    def predict(self, x_t: Tensor, t: Tensor, clip: Clip = False) -> Prediction:
        """Evaluate the network once.

        Args:
            x_t: noisy images, shape (B, C, H, W).
            t: times in 1..T, shape (B,).
            clip: clip or threshold x^_0 (see `Prediction`); everything else is then computed from it.
        """
        y, raw = self._read(x_t, self.process.times[distinct(t)])
        return Prediction(self, x_t, t, y, raw, clip)

    def score(self, x_t: Tensor, t: Tensor, clip: Clip = False) -> Tensor:
        """The model's score grad log q(x_t), Song et al. 2021; arguments as in `predict`."""
        return self.predict(x_t, t, clip).score

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in images at a real-valued time; shape of x.

        Args:
            x: noisy images, shape (B, C, H, W).
            t: original time in [1, T], the same for all images, shape ().
        """
        y, _ = self._read(x, t.view(1))
        k_y, k_x = self.parameterization.map_to(Eps(), self.process.origin.coefficients(t.view(1)))
        return k_y.to(x.dtype) * y + k_x.to(x.dtype) * x

    def _read(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output in the network's own parameterization, and the channels of a learned variance."""
        out = self.output(x, t)
        if not self.variance.extra_channels:
            return out, None
        y, raw = out.chunk(2, dim=1)
        return y, raw

    def output(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output, from inputs computed from x_t and t.

        Args:
            x: noisy images, shape (B, C, H, W).
            t: original times in [1, T], integer or real, shape (B,), or (1,) for all images.
            label: classes, int64, shape (B,); None for no class.
        """
        if self.replaced is not None:
            return self.replaced(x, t, label)
        origin = self.process.origin
        c_in, c_noise = self.parameterization.c_in(t, origin), self.parameterization.c_noise(t, origin)
        scaled = x if c_in is None else c_in.to(x.dtype).view(-1, 1, 1, 1) * x
        labels = () if label is None else (label,)
        return self.network(scaled, c_noise.expand(len(x)), *labels).to(x.dtype)

    def p(self, x_t: Tensor, t: Tensor, clip: Clip = False) -> Gaussian:
        """p(x_{t-1} | x_t), Eq. 1."""
        return self.predict(x_t, t, clip).p

    def respace(self, steps: int | Tensor) -> "Diffusion":
        """The same network on a shorter chain.

        x^_0 is decoded with the tables of the original chain; the posterior uses those of the shorter one (Nichol &
        Dhariwal 2021, section 4).

        Args:
            steps: number of evenly spaced steps, or the times to visit, increasing to T.
        Raises:
            ValueError: the steps do not fit the chain.
        """
        times = spacing.uniform(self.process, steps) if isinstance(steps, int) else steps
        process = self.process.respace(times.to(self.process.times.device))
        other = Diffusion(self.network, process, self.parameterization, self.variance, self.levels, self.classes)
        other.replaced = self.replaced
        return other

    def with_network(self, network: nn.Module) -> Self:
        """The same model with another network, such as the averaged one, sharing the tables."""
        assert self.replaced is None, "choose the network first"
        other = copy.copy(self)
        other._modules = {**self._modules, "network": network}
        return other

    def with_output(self, output: Output) -> Self:
        """The same model with another output function, such as a guided one, which may call this model's."""
        other = copy.copy(self)
        other.replaced = output
        return other

    def given(self, label: Tensor, guidance: Guidance = CONDITIONAL) -> Self:
        """The unconditional model of images of the given classes. An unconditional model is returned unchanged.

        Args:
            label: class of each image in the batches to come, 0..classes - 1, or `classes` for none, int64, shape (B,).
            guidance: how far to go beyond the conditional model.
        """
        if not self.classes:
            return self
        other = self.with_output(Given(self.output, label, self.classes, guidance))
        other.classes = 0
        return other
