import pytest
import torch
from conftest import diffusion_of
from options import PARAMETERIZATIONS

from ddpm.likelihood import elbo
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.mu import Mu
from ddpm.parameterization.v import V
from ddpm.parameterization.x0 import X0
from ddpm.sampler.ancestral import Ancestral

TIMES = torch.tensor([1, 2, 10, 100, 500, 900, 999, 1000])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("other", PARAMETERIZATIONS)
def test_parameterizations_round_trip(process, images, noise, parameterization, other):
    x_t = process.diffuse(images, TIMES, noise)
    y = X0().to(parameterization, process)(images, x_t, TIMES)
    there = parameterization.to(other, process)(y, x_t, TIMES)
    assert torch.allclose(there, X0().to(other, process)(images, x_t, TIMES), atol=1e-9)
    assert torch.allclose(other.to(parameterization, process)(there, x_t, TIMES), y, atol=1e-9)


def test_targets_are_what_their_names_say(process, images, noise):
    x_t = process.diffuse(images, TIMES, noise)
    of = lambda p: X0().to(p, process)(images, x_t, TIMES)  # noqa: E731
    alpha_bar = process.alpha_bar[TIMES].view(-1, 1, 1, 1)
    assert torch.allclose(of(Eps()), noise, atol=1e-11)
    assert torch.allclose(of(Mu()), process.posterior(images, x_t, TIMES).mean, atol=1e-12)
    assert torch.allclose(of(V()), alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * images, atol=1e-11)


def test_mean_of_an_eps_prediction_is_equation_11(process, images, noise):
    x_t = process.diffuse(images, TIMES, noise)
    beta, alpha_bar = (table[TIMES].view(-1, 1, 1, 1) for table in (process.beta, process.alpha_bar))
    eleven = (x_t - beta / (1 - alpha_bar).sqrt() * noise) / (1 - beta).sqrt()
    assert torch.allclose(Eps().to_mean(process)(noise, x_t, TIMES), eleven, atol=1e-11)


def test_mean_of_a_mu_prediction_is_exact_in_float32(process, images, noise):
    x_t = process.diffuse(images, TIMES, noise).float()
    y = noise.float()
    assert torch.equal(Mu().to_mean(process)(y, x_t, TIMES), y)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_clipping_reaches_every_reading(images, noise, parameterization):
    model = diffusion_of(lambda x_t, t: 3 * images, parameterization=parameterization)
    t = torch.tensor([1, 2, 3, 10, 20, 30, 49, 50])
    x_t = model.process.diffuse(images, t, noise)
    clipped, free = model.predict(x_t, t, clip=True), model.predict(x_t, t)
    assert clipped.x_0.abs().max() <= 1
    assert free.x_0.abs().max() > 1
    assert torch.allclose(clipped.p.mean, model.process.posterior(clipped.x_0, x_t, t).mean, atol=1e-12)
    assert not torch.allclose(clipped.p.mean, free.p.mean, atol=1e-3)
    again = model.process.diffuse(clipped.x_0, t, clipped.eps)
    assert torch.allclose(again, x_t, atol=1e-9)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_clipping_as_published_leaves_the_mean_that_a_mu_model_predicts(images, noise, parameterization):
    model = diffusion_of(lambda x_t, t: 3 * images, parameterization=parameterization)
    t = torch.tensor([1, 2, 3, 10, 20, 30, 49, 50])
    x_t = model.process.diffuse(images, t, noise)
    published, clipped, free = (model.predict(x_t, t, clip) for clip in ("published", True, False))
    assert torch.equal(published.x_0, clipped.x_0)
    assert torch.equal(published.eps, clipped.eps)
    same = free if isinstance(parameterization, Mu) else clipped
    assert torch.equal(published.p.mean, same.p.mean)
    assert not torch.allclose(free.p.mean, clipped.p.mean, atol=1e-3)
    bounds = [elbo.bound(model, images, lambda step: noise, clip).total for clip in ("published", same.clip)]
    assert torch.equal(*bounds)
    paths = [Ancestral(10, clip).sample(model, lambda step: noise) for clip in ("published", same.clip)]
    assert torch.equal(*paths)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_mean_without_clipping_is_the_posterior_at_the_predicted_image(images, noise, parameterization):
    model = diffusion_of(lambda x_t, t: 0.5 * x_t, parameterization=parameterization)
    t = torch.tensor([1, 2, 3, 10, 20, 30, 49, 50])
    prediction = model.predict(model.process.diffuse(images, t, noise), t)
    posterior = model.process.posterior(prediction.x_0, prediction.x_t, t)
    assert torch.allclose(prediction.p.mean, posterior.mean, atol=1e-10)


def test_score_of_gaussian_data_is_its_gradient():
    variance = 0.49

    def x_0(x_t, t):
        alpha_bar = process.alpha_bar[t].view(-1, 1)
        return alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar) * x_t

    model = diffusion_of(x_0)
    process = model.process
    x_t, t = torch.randn(50, 3, dtype=torch.float64), torch.arange(1, 51)
    marginal = process.alpha_bar[t] * variance + 1 - process.alpha_bar[t]
    assert torch.allclose(model.predict(x_t, t).score, -x_t / marginal[:, None], atol=1e-9)


def test_respacing_decodes_with_the_original_tables_and_steps_with_the_respaced(images, noise):
    for parameterization in PARAMETERIZATIONS:
        model = diffusion_of(lambda x_t, t: torch.tanh(x_t) * 0.3, parameterization=parameterization)
        short = model.respace(torch.tensor([3, 20, 50]))
        t, original = torch.full((8,), 2), torch.full((8,), 20)
        x_t = model.process.diffuse(images, original, noise)
        assert torch.allclose(short.predict(x_t, t).x_0, model.predict(x_t, original).x_0, atol=1e-10)
        posterior = short.process.posterior(short.predict(x_t, t).x_0, x_t, t)
        assert torch.allclose(short.p(x_t, t).mean, posterior.mean, atol=1e-10)
