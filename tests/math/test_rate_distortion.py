import math

import pytest
import torch
from conftest import diffusion_of

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.chain.process import Process
from ddpm.generation import trajectory
from ddpm.likelihood import elbo
from ddpm.likelihood.progressive_coding import rate_distortion
from ddpm.sampler.ancestral import Ancestral
from ddpm.schedule.linear import Linear


def denoise(x_t, t):
    return torch.tanh(2 * x_t)


def noise_of(n):
    return IndexedNoise(3, Stream.SAMPLES, range(n), (1, 4, 4), dtype=torch.float64)


def test_rate_grows_from_the_prior_to_the_whole_rate(images, noise):
    bound = elbo.bound(diffusion_of(denoise), images, lambda t: noise)
    curve = rate_distortion(bound)
    assert curve.steps.tolist() == list(range(1, 51))
    summary = bound.summary()
    assert curve.rate[0].item() == pytest.approx(summary["prior"])
    assert curve.rate[-1].item() == pytest.approx(summary["rate"])
    assert (curve.rate.diff() > 0).all()
    # After s steps t = T - s + 1: what was sent is L_T, ..., L_t.
    sent = (bound.prior + bound.terms[:, 31:].sum(1)).mean() / (48 * math.log(2))
    assert curve.rate[19].item() == pytest.approx(sent.item())


def test_distortion_is_the_error_of_the_prediction_on_the_scale_of_the_pixels(images, noise):
    off = (images + 2 / 255).clamp(-1, 1)
    curve = rate_distortion(elbo.bound(diffusion_of(lambda x_t, t: off), images, lambda t: noise))
    expected = ((off - images) ** 2).mean().sqrt() * 127.5
    assert torch.allclose(curve.rmse, expected.expand(50))
    far = rate_distortion(elbo.bound(diffusion_of(lambda x_t, t: images + 100), images, lambda t: noise))
    assert far.rmse.max() <= 255


def test_distortion_falls_as_steps_are_received(images, noise):
    def towards(x_t, t):
        return images * (1 - t.view(-1, 1, 1, 1) / 50)

    curve = rate_distortion(elbo.bound(diffusion_of(towards), images, lambda t: noise))
    assert (curve.rmse.diff() < 0).all()


def test_predictions_along_the_chain_end_with_the_sample():
    model, sampler = diffusion_of(denoise), Ancestral(20)
    along = trajectory.predictions(model, sampler, noise_of(3), 6)
    assert along.shape == (3, 6, 1, 4, 4)
    assert torch.equal(along[:, -1], sampler.sample(model, noise_of(3)).clamp(-1, 1))
    states = {state.step: state for state in sampler.trajectory(model, noise_of(3))}
    assert torch.equal(along[:, 0], states[19].x_0)
    assert trajectory.evenly(19, 6)[1:-1] == sorted(trajectory.evenly(19, 6)[1:-1], reverse=True)


def test_samples_that_share_x_t_differ_and_follow_it():
    model = diffusion_of(lambda x_t, t: torch.tanh(5 * x_t), Process(Linear(T=50, beta_T=0.2).beta()))
    shared = trajectory.sharing(model, Ancestral(clip=False), (1, 4, 4), 3, (1.0, 0.5, 0.1), 5)
    assert shared.shape == (3, 6, 1, 4, 4)
    samples = shared[:, 1:]
    assert len(samples[0].flatten(1).unique(dim=0)) == 5
    spread = samples.std(1).mean((1, 2, 3))
    assert spread[0] > spread[1] > spread[2]
    # The first of them is the sample that the chain would have ended with.
    alone = Ancestral(clip=False).sample(model, IndexedNoise(3, Stream.SAMPLES, [0], (1, 4, 4)))
    assert torch.allclose(samples[:, 0], alone.clamp(-1, 1).expand(3, 1, 4, 4), atol=1e-5)


def test_a_trajectory_may_start_on_the_way():
    model, sampler = diffusion_of(denoise), Ancestral(20)
    states = list(sampler.trajectory(model, noise_of(2)))
    again = list(sampler.trajectory(model, noise_of(2), (states[9].step, states[9].x)))
    assert [state.step for state in again] == [state.step for state in states[10:]]
    assert torch.equal(again[-1].x, states[-1].x)
