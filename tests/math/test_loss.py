import math

import pytest
import torch
from conftest import diffusion_of
from options import PARAMETERIZATIONS

from ddpm.likelihood import elbo
from ddpm.loss.hybrid import Hybrid
from ddpm.loss.min_snr import MinSNR
from ddpm.loss.p2 import P2
from ddpm.loss.simple import Simple
from ddpm.loss.vlb import VLB
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.mu import Mu
from ddpm.parameterization.v import V
from ddpm.parameterization.x0 import X0
from ddpm.variance.fixed_small import FixedSmall
from ddpm.variance.learned_range import LearnedRange

T = torch.tensor([1, 2, 3, 10, 20, 30, 49, 50])


def predicted(images, noise, parameterization, variance=None, raw=0.0):
    model = diffusion_of(lambda x_t, t: 0.4 * x_t, parameterization=parameterization, variance=variance, raw=raw)
    return model.predict(model.process.diffuse(images, T, noise), T)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_simple_is_the_mean_squared_error_of_the_networks_own_output(images, noise, parameterization):
    prediction = predicted(images, noise, parameterization)
    target = X0().to(parameterization, prediction.diffusion.process)(images, prediction.x_t, T)
    assert torch.allclose(Simple()(prediction, images), ((prediction.y - target) ** 2).mean((1, 2, 3)), rtol=1e-12)


def test_simple_for_eps_is_equation_14(images, noise):
    prediction = predicted(images, noise, Eps())
    assert torch.allclose(Simple()(prediction, images), ((noise - prediction.eps) ** 2).mean((1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("loss", [MinSNR(), MinSNR(1.0), P2(), P2(0.5, 2.0)])
def test_weightings_do_not_depend_on_the_parameterization(images, noise, loss):
    values = [loss(predicted(images, noise, p), images) for p in PARAMETERIZATIONS]
    for value in values[1:]:
        assert torch.allclose(value, values[0], rtol=1e-9)


def test_min_snr_bounds_the_weight_of_the_clean_image(images, noise):
    prediction = predicted(images, noise, X0())
    error = ((images - prediction.x_0) ** 2).mean((1, 2, 3))
    snr = prediction.diffusion.process.snr[T]
    assert torch.allclose(MinSNR(5.0)(prediction, images), torch.minimum(snr, torch.tensor(5.0)) * error, rtol=1e-9)


def test_p2_weights_the_error_of_the_noise(images, noise):
    prediction = predicted(images, noise, V())
    error = ((noise - prediction.eps) ** 2).mean((1, 2, 3))
    snr = prediction.diffusion.process.snr[T]
    assert torch.allclose(P2(1.0, 1.0)(prediction, images), error / (1 + snr), rtol=1e-9)
    assert torch.allclose(P2(1.0, 0.0)(prediction, images), error, rtol=1e-9)


def test_vlb_as_a_weighted_error_is_equation_8_for_mu_and_12_for_eps(images, noise):
    for parameterization in (Mu(), Eps()):
        prediction = predicted(images, noise, parameterization, FixedSmall())
        process = prediction.diffusion.process
        error = Simple()(prediction, images) * 48
        sigma_2 = process.log_beta_tilde[T].exp()
        weight = 1 / (2 * sigma_2)
        if isinstance(parameterization, Eps):
            weight = process.beta[T] ** 2 / (2 * sigma_2 * (1 - process.beta[T]) * (1 - process.alpha_bar[T]))
        nats = VLB()(prediction, images) * 48 * torch.tensor(2.0).log()
        assert torch.allclose(nats[1:], (weight * error)[1:], rtol=1e-6)


def test_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound(images, noise):
    def gradients(loss):
        prediction = predicted(images, noise, Eps(), LearnedRange())
        prediction.y, prediction.raw = prediction.y.clone().requires_grad_(), prediction.raw.clone().requires_grad_()
        loss(prediction, images).sum().backward()
        return prediction.y.grad, prediction.raw.grad

    hybrid, simple, vlb = gradients(Hybrid(0.01)), gradients(Simple()), gradients(VLB())
    assert torch.allclose(hybrid[0], simple[0], rtol=1e-12)
    assert torch.allclose(hybrid[1], 0.01 * 50 * vlb[1], rtol=1e-12)
    assert simple[1] is None
    assert vlb[1].abs().sum() > 0


def test_hybrid_is_the_sum_of_its_parts(images, noise):
    prediction = predicted(images, noise, Eps(), LearnedRange())
    total = Simple()(prediction, images) + 0.001 * 50 * VLB()(prediction, images)
    assert torch.allclose(Hybrid()(prediction, images), total)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_vlb_is_minimised_as_published_one_term_in_bits_per_dim(images, noise, parameterization):
    def gradient(loss):
        scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        model = diffusion_of(lambda x_t, t: scale * x_t, parameterization=parameterization)
        value = loss(model.predict(model.process.diffuse(images, T, noise), T)).mean()
        return value.item(), torch.autograd.grad(value, scale)[0].item()

    published = gradient(lambda prediction: elbo.term(prediction, images) / (48 * math.log(2)))
    assert gradient(lambda prediction: VLB()(prediction, images)) == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(0), "gamma must be positive, got 0; Hang et al. use 5"),
        (lambda: P2(k=0), "k must be positive and gamma at least 0, got k=0"),
        (lambda: Hybrid(0), "vlb_weight must be positive, got 0"),
    ],
)
def test_values_out_of_range_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
