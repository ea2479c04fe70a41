"""The examples of CONTRIBUTING.md work as printed."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.x0 import X0
from ddpm.schedule.linear import Linear
from ddpm.setup import build
from ddpm.variance.fixed_small import FixedSmall

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
CODE = dict(re.findall(r"`src/(ddpm/[a-z_/]+)\.py`:\n\n```python\n(.*?)```", TEXT, re.DOTALL))
YAML = dict(re.findall(r"`conf/([a-z_/]+)\.yaml`[^\n]*:\n\n```yaml\n(.*?)```", TEXT, re.DOTALL))
GIVEN = {"network": {"image_size": 8, "in_channels": 1, "out_channels": 1}}
"""What the data determine."""


@pytest.fixture(scope="module")
def examples():
    """Name of a group -> what its example's yaml builds, each module executed by itself."""
    built = {}
    with pytest.MonkeyPatch.context() as patch:
        for path, code in CODE.items():
            module = ModuleType(path.replace("/", "."))
            exec(compile(code, path, "exec"), vars(module))
            patch.setitem(sys.modules, module.__name__, module)
        for path, text in YAML.items():
            group, name = path.split("/")
            node = OmegaConf.create(text)
            node = node[name] if group in ("metrics", "callbacks") else node
            built[group] = build.instance(group, node, **GIVEN.get(group, {}))
        yield built


def model(parameterization):
    torch.manual_seed(0)
    network = UNet(8, 1, 1, width=8, multipliers=(1,), attention=(), groups=4).eval()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return Diffusion(network, Process(Linear(T=50).beta()), parameterization, FixedSmall())


def test_every_snippet_belongs_to_a_file_and_every_file_of_code_to_one_of_configuration():
    assert len(CODE) == TEXT.count("```python") == 8
    assert len(YAML) == TEXT.count("```yaml") == 8
    groups = {"callbacks": "lit/callbacks"}
    files = {f"ddpm/{groups.get(group, group)}/{name}" for group, name in (path.split("/") for path in YAML)}
    assert files == {*CODE}


def test_the_schedule_rises_geometrically(examples):
    beta = examples["schedule"].beta()
    assert (beta[0].item(), beta[-1].item()) == (pytest.approx(1e-4), pytest.approx(0.02))
    assert torch.allclose(beta.log().diff(), beta.log().diff()[:1].expand(999))


def test_the_parameterization_is_the_score(examples):
    process = Process(Linear(T=50).beta())
    score, t = examples["parameterization"], torch.tensor([1, 20, 50])
    x_0, x_t = torch.randn(2, 3, 4, dtype=torch.float64)
    eps = X0().to(Eps(), process)(x_0, x_t, t)
    assert torch.allclose(X0().to(score, process)(x_0, x_t, t), -eps / process.sigma[t, None])


def test_the_weighting_is_that_of_the_clean_image(examples):
    diffusion = model(Eps())
    x_0, noise, t = *torch.randn(2, 3, 1, 8, 8), torch.tensor([1, 20, 50])
    prediction = diffusion.predict(diffusion.process.diffuse(x_0, t, noise), t)
    error = ((prediction.x_0 - x_0) ** 2).mean((1, 2, 3))
    weight = diffusion.process.snr[t].clamp(min=1).float()
    assert torch.allclose(examples["loss"](prediction, x_0), weight * error, rtol=1e-3)


def test_the_sampler_draws_nothing_after_the_start(examples):
    drawn = []

    def noise(step):
        drawn.append(step)
        return torch.ones(2, 1, 8, 8)

    x = examples["sampler"].sample(model(Eps()), noise)
    assert drawn == [0]
    assert x.shape == (2, 1, 8, 8)


def test_the_network_sees_the_time(examples):
    x, network = torch.randn(2, 1, 8, 8), examples["network"]
    early, late = (network(x, torch.full((2,), t)) for t in (0, 999))
    assert early.shape == x.shape
    assert not torch.allclose(early, late)


def test_the_metric_is_zero_for_the_same_images_and_signed(examples):
    pixels = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    metric = examples["metrics"]
    assert metric({"pixels": pixels}, {"pixels": pixels}) == {"brightness": 0}
    assert metric({"pixels": pixels + 3}, {"pixels": pixels}) == {"brightness": 3}


def test_the_callback_records_the_norm(examples, train, tmp_path):
    callback = examples["callbacks"]
    assert callback.due(100)
    assert not callback.due(99)
    run = train(tmp_path)
    callback.record = lambda trainer, module, values: found.update(values)
    found = {}
    callback.run(run.trainer, run.module)
    weights = torch.nn.utils.parameters_to_vector(run.module.ema.network.parameters())
    assert found == {"weight_norm": pytest.approx(float(weights.norm()))}


def test_the_operator_has_an_adjoint(examples):
    operator = examples["operator"]
    x, y = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    assert torch.allclose((operator(x) * y).sum(), (x * operator.adjoint(y, (1, 8, 8))).sum(), atol=1e-4)
