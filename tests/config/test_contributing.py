"""The examples of CONTRIBUTING.md work as printed."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm.chain.process import Coefficients, Process
from ddpm.loss.base import WeightedError
from ddpm.model.diffusion import Diffusion
from ddpm.model.prediction import Prediction
from ddpm.network.unet import UNet
from ddpm.operator.base import LinearOperator
from ddpm.parameterization.base import Parameterization
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.x0 import X0
from ddpm.sampler.base import Noise, Sampler, State
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def examples():
    names = (
        Tensor,
        Diffusion,
        WeightedError,
        Parameterization,
        Coefficients,
        Prediction,
        Sampler,
        State,
        LinearOperator,
    )
    namespace = {part.__name__: part for part in names} | {"torch": torch, "Noise": Noise, "__name__": __name__}
    for code in PYTHON:
        exec(code, namespace)
    return namespace


def model(process, parameterization):
    torch.manual_seed(0)
    network = UNet(8, 1, 1, width=8, multipliers=(1,), attention=(), groups=4).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return Diffusion(network, process, parameterization, FixedSmall())


def test_every_kind_of_option_has_an_example():
    assert len(PYTHON) == 5
    assert len(re.findall(r"```yaml\n_target_: ddpm\.", TEXT)) == 5


def test_the_schedule_rises_geometrically(examples):
    beta = examples["Geometric"](T=50).beta()
    assert (beta[0].item(), beta[-1].item()) == (pytest.approx(1e-4), pytest.approx(0.02))
    assert torch.allclose(beta.log().diff(), beta.log().diff()[:1].expand(49))


def test_the_parameterization_is_the_score(examples):
    process = Process(Linear(T=50).beta())
    score, t = examples["Score"](), torch.tensor([1, 20, 50])
    x_0, x_t = torch.randn(2, 3, 4, dtype=torch.float64)
    eps = X0().to(Eps(), process)(x_0, x_t, t)
    assert torch.allclose(X0().to(score, process)(x_0, x_t, t), -eps / process.sigma[t, None])


def test_the_weighting_is_that_of_the_clean_image(examples):
    diffusion = model(Process(Linear(T=50).beta()), Eps())
    x_0, noise, t = *torch.randn(2, 3, 1, 8, 8), torch.tensor([1, 20, 50])
    prediction = diffusion.predict(diffusion.process.diffuse(x_0, t, noise), t)
    error = ((prediction.x_0 - x_0) ** 2).mean((1, 2, 3))
    weight = diffusion.process.snr[t].clamp(min=1).float()
    assert torch.allclose(examples["TruncatedSNR"]()(prediction, x_0), weight * error, rtol=1e-3)


def test_the_sampler_draws_nothing_after_the_start(examples):
    drawn = []

    def noise(step):
        drawn.append(step)
        return torch.ones(2, 1, 8, 8)

    x = examples["Mean"](steps=5).sample(model(Process(Linear(T=50).beta()), Eps()), noise)
    assert drawn == [0]
    assert x.shape == (2, 1, 8, 8)


def test_the_operator_has_an_adjoint(examples):
    operator = examples["Decimate"]()
    x, y = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    assert torch.allclose((operator(x) * y).sum(), (x * operator.adjoint(y, (1, 8, 8))).sum(), atol=1e-4)
