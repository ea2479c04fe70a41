"""Step by step against huggingface/diffusers, on a shared network and shared noise, where the definitions coincide.

What differs, and is set to be the same here: diffusers counts times from 0, ends DDIM and DPM-Solver at alpha_bar of
time 0 unless told that it is 1, keeps Heun's samples divided by sqrt(alpha_bar), and multiplies up alpha_bar in
float32, which alone moves Heun's samples by 2e-4.
"""

import pytest
import torch
from torch import nn

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.model.diffusion import Diffusion
from ddpm.parameterization.eps import Eps
from ddpm.sampler.ddim import DDIM
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.sampler.heun import Heun
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall

pytestmark = pytest.mark.slow

OPTIONS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


PROCESS = Process(Linear().beta())


def network(x, t):
    """The eps of a smooth denoiser, at a real time that counts from 0, as theirs do."""
    at = PROCESS.coefficients(t + 1)
    alpha, sigma = (each.reshape(-1, 1, 1, 1) for each in (at.sqrt_alpha_bar, at.sigma))
    return (x - alpha * torch.tanh(1.5 * alpha * x)) / sigma


@pytest.fixture(scope="module")
def diffusers():
    """Imported late: it takes seconds, and `make fast` collects this file too."""
    import diffusers

    return diffusers


@pytest.fixture(scope="module")
def model():
    return Diffusion(nn.Identity(), PROCESS, Eps(), FixedSmall()).with_output(lambda x, t, label: network(x, t - 1))


@pytest.fixture
def noise():
    return IndexedNoise(0, Stream.SAMPLES, range(2), (1, 4, 4), dtype=torch.float64)


def theirs(scheduler, noise, steps, scale=1.0, **options):
    """The states of a scheduler after each step."""
    scheduler.alphas_cumprod = PROCESS.alpha_bar[1:]
    scheduler.set_timesteps(steps)
    x, states = noise(0) * scale, []
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        eps = network(scaled, t.double().expand(len(x)))
        given = {name: value(steps - i) for name, value in options.items()}
        x = scheduler.step(eps, t, x, **given).prev_sample
        states.append(x)
    return states


def compare(sampler, model, noise, expected, scale=lambda step: 1.0):
    states = list(sampler.trajectory(model, noise))
    assert len(states) == len(expected)
    for state, x in zip(states, expected, strict=True):
        assert torch.allclose(state.x, x * scale(state.step), atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(diffusers, model, noise, steps, clip, eta):
    scheduler = diffusers.DDIMScheduler(**OPTIONS, clip_sample=clip, set_alpha_to_one=True, timestep_spacing="trailing")
    states = theirs(
        scheduler, noise, steps, eta=lambda step: eta, variance_noise=noise, use_clipped_model_output=lambda step: clip
    )
    compare(DDIM(steps, clip, "trailing", eta), model, noise, states)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [10, 50])
def test_dpm_solver(diffusers, model, noise, steps, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **OPTIONS, solver_order=order, timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=True
    )
    compare(DPMSolver(steps, False, "trailing", order), model, noise, theirs(scheduler, noise, steps))


@pytest.mark.parametrize("steps", [10, 50])
def test_stochastic_dpm_solver(diffusers, model, noise, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **OPTIONS, algorithm_type="sde-dpmsolver++", timestep_spacing="trailing", final_sigmas_type="zero"
    )
    states = theirs(scheduler, noise, steps, variance_noise=noise)
    compare(DPMSolver(steps, False, "trailing", stochastic=True), model, noise, states)


@pytest.mark.parametrize("steps", [5, 20])
def test_heun(diffusers, model, noise, steps):
    scheduler = diffusers.HeunDiscreteScheduler(**OPTIONS, use_karras_sigmas=True)
    alpha = model.process.sqrt_alpha_bar
    # Every second state of theirs is the Euler step on the way to ours.
    states = theirs(scheduler, noise, steps, scale=1 / alpha[-1].item())
    states = [*states[1:-1:2], states[-1]]
    chain = Heun(steps, clip=False).chain(model).process.sqrt_alpha_bar
    compare(Heun(steps, clip=False), model, noise, states, lambda step: chain[step].item())
