"""Conditional models and classifier-free guidance against a mixture of Gaussians, one for each class."""

import pytest
import torch
from conftest import Denoiser
from options import PARAMETERIZATIONS
from torch import nn

from ddpm.chain.process import Process
from ddpm.chain.tables import gather
from ddpm.conditioning.class_ import ClassLabels
from ddpm.model.conditional import Classes, Guidance, in_proportion
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.v import V
from ddpm.parameterization.x0 import X0
from ddpm.sampler.ddim import DDIM
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall
from ddpm.variance.learned_range import LearnedRange

PROCESS = Process(Linear(T=50, beta_T=0.2).beta())
MEANS = torch.tensor([[-0.8, 0.1], [0.3, 0.7], [0.5, -0.6]], dtype=torch.float64).view(3, 2, 1, 1)
SHARE = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
SPREAD = 0.04  # variance of each class
CLASSES = len(MEANS)


def log_density(x_t, t, label=None):
    """log q(x_t | class), or log q(x_t) without a class, up to the same constant."""
    ab, variance = (gather(table, t, x_t) for table in (PROCESS.alpha_bar, PROCESS.sigma**2))
    variance = ab * SPREAD + variance
    away = x_t[:, None] - ab[:, None].sqrt() * MEANS[None]
    each = (-0.5 * away**2 / variance[:, None]).flatten(2).sum(2) - torch.log(variance).flatten(1)
    return torch.logsumexp(each + SHARE.log(), 1) if label is None else each.gather(1, label[:, None])[:, 0]


def score(x_t, t, label=None):
    """Its gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        x_t = x_t.clone().detach().requires_grad_()
        label = None if label is None else label.clone()
        return torch.autograd.grad(log_density(x_t, t.clone(), label).sum(), x_t)[0]


class Mixture(nn.Module):
    """The optimal network of either kind, in a parameterization; it keeps the sizes of its batches."""

    def __init__(self, target, raw=None):
        super().__init__()
        self.target, self.raw, self.batches = target, raw, []

    def forward(self, x_t, t, label=None):
        t = t + 1
        self.batches.append(len(x_t))
        label = torch.full_like(t, CLASSES) if label is None else label
        known = label < CLASSES
        given = torch.where(known.view(-1, 1, 1, 1), score(x_t, t, label.clamp(max=CLASSES - 1)), score(x_t, t))
        clean = (x_t + gather(PROCESS.sigma**2, t, x_t) * given) / gather(PROCESS.sqrt_alpha_bar, t, x_t)
        y = self.target(clean, x_t, t)
        if self.raw is None:
            return y
        return torch.cat([y, torch.where(known, self.raw, -self.raw).view(-1, 1, 1, 1).expand_as(y)], 1)


def model_of(parameterization, variance=None, raw=None):
    model = Diffusion(nn.Identity(), PROCESS, parameterization, variance or FixedSmall(), classes=CLASSES)
    model.network = Mixture(model.target, raw)
    return model.eval()


def batch(n=12):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n, 2, 1, 1, generator=generator, dtype=torch.float64)
    t = torch.randint(1, 51, (n,), generator=generator)
    return x_t, t, torch.randint(CLASSES, (n,), generator=generator)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 3.0])
def test_the_guided_score_is_that_of_the_sharpened_density(parameterization, w):
    x_t, t, label = batch()
    found = model_of(parameterization).given(label, Guidance(w)).score(x_t, t)
    assert torch.allclose(found, (1 + w) * score(x_t, t, label) - w * score(x_t, t), atol=1e-9, rtol=1e-9)


def test_without_guidance_it_is_the_conditional_model_to_the_last_bit():
    torch.manual_seed(0)
    network = UNet(8, 1, 1, 8, (1, 2), 1, (4,), 0.0, 4, classes=3).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = Diffusion(network, PROCESS, Eps(), FixedSmall(), classes=3)
    x_t, t, label = torch.randn(6, 1, 8, 8), torch.arange(1, 7), torch.tensor([0, 1, 2, 0, 1, 3])
    given = model.given(label).predict(x_t, t).y
    assert torch.equal(given, network(x_t, t - 1, label))
    assert not torch.equal(given[:5], network(x_t, t - 1)[:5])
    assert torch.equal(model.predict(x_t, t).y, network(x_t, t - 1, torch.full((6,), 3)))


def test_both_evaluations_are_one_batch_and_only_where_they_guide():
    model = model_of(Eps())
    x_t, _, label = batch(5)
    for w, interval, time, size in ((2.0, None, 20, 10), (0.0, None, 20, 5), (2.0, (10, 30), 20, 10)):
        model.given(label, Guidance(w, interval)).predict(x_t, torch.full((5,), time))
        assert model.network.batches.pop() == size
    for time in (9, 31):
        found = model.given(label, Guidance(2.0, (10, 30))).score(x_t, torch.full((5,), time))
        assert model.network.batches.pop() == 5
        assert torch.allclose(found, score(x_t, torch.full((5,), time), label))
    for time in (10, 30):
        model.given(label, Guidance(2.0, (10, 30))).score(x_t, torch.full((5,), time))
        assert model.network.batches.pop() == 10


def test_images_inside_and_outside_the_interval_may_share_a_batch():
    x_t, _, label = batch(4)
    t = torch.tensor([5, 15, 25, 35])
    found = model_of(V()).given(label, Guidance(2.0, (15, 25))).score(x_t, t)
    w = torch.tensor([0.0, 2.0, 2.0, 0.0], dtype=torch.float64).view(-1, 1, 1, 1)
    assert torch.allclose(found, (1 + w) * score(x_t, t, label) - w * score(x_t, t), atol=1e-9)


def test_a_learned_variance_is_that_of_the_conditional_model():
    x_t, t, label = batch()
    model = model_of(Eps(), LearnedRange(), raw=0.7)
    assert torch.equal(
        model.given(label, Guidance(3.0)).p(x_t, t).log_var, model.given(label, Guidance(0.0)).p(x_t, t).log_var
    )


@pytest.mark.parametrize("interval", [(3,), (30, 10), (1, 2, 3)])
def test_an_interval_has_a_first_and_a_last_time(interval):
    with pytest.raises(ValueError, match="guidance_interval must be the first and last"):
        Guidance(1.0, interval)


def test_samples_of_a_class_have_its_moments_and_guidance_moves_them_on():
    model = model_of(Eps())
    noise = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = torch.ones(4000, dtype=torch.int64)
    sampler = DDIM(clip=False)
    plain, guided = (sampler.sample(model.given(label, Guidance(w)), lambda step: noise) for w in (0.0, 2.0))
    assert torch.allclose(plain.mean(0), MEANS[1], atol=0.02)
    away = MEANS[1] - (SHARE.view(-1, 1, 1, 1) * MEANS).sum(0)
    assert ((guided - plain).mean(0) * away).sum() > 0.01


def test_labels_are_left_out_as_often_as_they_should():
    label = torch.arange(20_000) % 3
    generator = torch.Generator().manual_seed(0)
    found = ClassLabels(0.2).labels(label, 3, generator)
    left_out = found == 3
    assert abs(float(left_out.double().mean()) - 0.2) < 0.01
    assert torch.equal(found[~left_out], label[~left_out])
    assert torch.equal(ClassLabels(0.0).labels(label, 3, generator), label)


def test_classes_of_samples_do_not_depend_on_the_batch():
    classes = Classes(torch.tensor([4, 0, 7]))
    assert classes.of(range(7)).tolist() == [4, 0, 7, 4, 0, 7, 4]
    assert classes.of([6, 2]).tolist() == [4, 7]


def test_every_stretch_has_the_proportions_of_the_whole():
    labels = torch.cat([torch.zeros(700), torch.ones(200), torch.full((100,), 2.0)]).long()
    found = in_proportion(labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))])
    assert torch.equal(found.bincount(), labels.bincount())
    for start in (0, 300, 900):
        counts = found[start : start + 100].bincount(minlength=3)
        assert (counts - torch.tensor([70, 20, 10])).abs().max() <= 3


def test_dynamic_thresholding_brings_bright_images_back_and_leaves_others():
    model = model_of(X0())
    x_t = torch.tensor([[3.0, 0.5], [0.2, -0.3]], dtype=torch.float64).view(2, 2, 1, 1)
    model = model.with_output(Denoiser(lambda x, t: x, model.target))
    found = model.predict(x_t, torch.tensor([5, 5]), clip=0.75).x_0
    s = 0.5 + 0.75 * 2.5
    assert torch.allclose(found[0].flatten(), torch.tensor([1.0, 0.5 / s], dtype=torch.float64), atol=1e-6)
    assert torch.equal(found[1], x_t[1])
    assert torch.allclose(
        model.predict(x_t, torch.tensor([5, 5]), clip=0.75).eps,
        (x_t - PROCESS.sqrt_alpha_bar[5] * found) / PROCESS.sigma[5],
    )


def test_a_model_of_a_class_has_no_more_classes_and_a_shorter_chain_still_has():
    x_t, _, label = batch()
    t = torch.full_like(label, 20)
    model = model_of(Eps()).given(label)
    assert model.given(torch.zeros_like(label)) is model
    short = model_of(Eps()).respace(torch.tensor([10, 20, 50])).given(label)
    assert torch.equal(short.predict(x_t, torch.full_like(label, 2)).y, model.predict(x_t, t).y)
