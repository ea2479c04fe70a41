"""Settings that would compute numbers that are none are refused."""

import importlib
import inspect
import math
import pkgutil
from typing import get_args, get_type_hints

import pytest
import torch

import ddpm
from ddpm.chain.process import Process
from ddpm.model.conditional import Guidance
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.sampler.predictor_corrector import PredictorCorrector
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall

GROUPS = ("schedule", "loss", "time_sampler", "sampler", "solver", "operator", "conditioning")


def floats():
    """Every setting of every option that may be a float: the class and the name."""
    for group in GROUPS:
        for module in pkgutil.iter_modules([f"{ddpm.__path__[0]}/{group}"], f"ddpm.{group}."):
            if module.name.endswith(".base"):
                continue
            for option in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(option) and option.__module__ == module.name and not inspect.isabstract(option):
                    hints = get_type_hints(option.__init__)
                    yield from ((option, name) for name, kind in hints.items() if float in (kind, *get_args(kind)))


SETTINGS = list(floats())


@pytest.mark.parametrize(("option", "name"), SETTINGS, ids=lambda each: getattr(each, "__name__", each))
def test_no_option_takes_what_is_not_a_number(option, name):
    needed = {"T": 10} if "T" in inspect.signature(option).parameters else {}
    unbounded = (option.__name__, name) == ("MinSNR", "gamma")  # the weight is the SNR itself
    for value in (math.nan,) if unbounded else (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=str(value)):
            option(**needed, **{name: value})


def test_there_are_settings_to_look_at():
    assert len(SETTINGS) > 30


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_guidance_is_a_number(scale):
    with pytest.raises(ValueError, match="guidance must be a finite number"):
        Guidance(scale)


@pytest.mark.parametrize("width", [-4, 0, 2])
def test_a_network_is_wide_enough_for_its_time_embedding(width):
    with pytest.raises(ValueError, match=rf"width must be at least 4 \(time embedding\), .* got {width}"):
        UNet(8, 1, 1, width=width, multipliers=(1,), attention=(), groups=1)
    network = UNet(8, 1, 1, width=4, multipliers=(1,), attention=(), groups=1)
    assert network.time(torch.tensor([0, 999])).isfinite().all()


def test_langevin_steps_stay_where_the_score_is_zero(noise):
    class Untrained(torch.nn.Module):
        def forward(self, x_t, t):
            return torch.zeros_like(x_t)

    model = Diffusion(Untrained(), Process(Linear(5).beta()), Eps(), FixedSmall())
    found = PredictorCorrector(clip=False).sample(model, lambda step: noise)
    assert found.isfinite().all()
