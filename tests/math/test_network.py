import pytest
import torch
from torch import nn

from ddpm.chain.process import Process
from ddpm.chain.tables import same
from ddpm.likelihood.elbo import bound
from ddpm.model.diffusion import Diffusion
from ddpm.network.layers import Attention
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.sampler.ancestral import Ancestral
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall


def small(**options):
    defaults = dict(image_size=8, in_channels=1, out_channels=1, width=16, multipliers=(1, 2), attention=(4,), groups=4)
    return UNet(**(defaults | options))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (dict(image_size=32), 35_746_307),
        (dict(image_size=256, multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0), 113_673_219),
        (dict(image_size=256, multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0, width=192), 255_677_955),
    ],
)
def test_parameter_counts_are_those_of_the_paper(options, count):
    with torch.device("meta"):
        network = UNet(in_channels=3, out_channels=3, **options)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(
    "options",
    [dict(), dict(out_channels=2), dict(image_size=28, multipliers=(1, 1, 1), attention=(7, 28)), dict(blocks=3)],
)
def test_output_has_the_shape_asked_for(options):
    network = small(**options)
    size = options.get("image_size", 8)
    out = network(torch.randn(2, 1, size, size), torch.tensor([0, 999]))
    assert out.shape == (2, options.get("out_channels", 1), size, size)


def test_every_layer_starts_with_the_variance_of_the_published_code():
    """The published code draws the weights of every layer uniformly with variance 1 / mean(fan_in, fan_out).

    The second convolution of a block, the projection of attention and the last convolution are drawn with 1e-10 of
    that variance instead (here 0); query, key and value are three layers of C inputs and C outputs.
    """
    torch.manual_seed(0)
    network = UNet(32, 3, 3, width=64, multipliers=(1, 2))
    zero, parts = ("conv_2", "out", "conv_out"), {"query_key_value": 3}
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    kinds = {name.rsplit(".", 1)[-1] for name in layers}
    assert kinds == {
        *("first", "second", "time", "conv_in", "conv_1", "conv_2", "shortcut", "query_key_value", "out"),
        *("conv", "conv_out"),
    }
    for name, layer in layers.items():
        kind = name.rsplit(".", 1)[-1]
        assert layer.bias.abs().max() == 0, name
        for part in layer.weight.detach().double().chunk(parts.get(kind, 1)):
            receptive = part[0, 0].numel()
            std = (2 / ((part.shape[0] + part.shape[1]) * receptive)) ** 0.5
            expected = 0.0 if kind in zero else std
            assert part.std().item() == pytest.approx(expected, rel=5 * part.numel() ** -0.5), name
            assert part.abs().max() <= 3**0.5 * expected * (1 + 1e-6), name  # uniform: within sqrt(3) std


def test_output_starts_at_zero_and_every_parameter_is_trained():
    network = small(dropout=0.0)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 500, 999])
    assert network(x, t).abs().max() == 0
    # Layers that start at zero stop gradients at first; a small push shows that all parameters matter.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    network(x, t).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_neighbouring_times_are_told_apart_and_images_do_not_mix():
    network = small(dropout=0.0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter, generator=None))
    x = torch.randn(3, 1, 8, 8)
    out = network(x, torch.tensor([10, 11, 500]))
    assert (network(x[:1], torch.tensor([11])) - out[:1]).abs().max() > 1e-5
    assert torch.allclose(network(x[1:2], torch.tensor([11])), out[1:2], atol=1e-5)


def test_float64_runs_throughout():
    network = small(dropout=0.0).double()
    assert network(torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.tensor([3])).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=9), r"image_size 9 cannot be halved 1 times, as multipliers=\[1, 2\] requires"),
        (dict(attention=(16,)), r"attention at \[16\] is never reached; the levels of this network are \[8, 4\]"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(groups=5), "width must be even and divisible by groups=5, got 16"),
        (dict(multipliers=()), "a U-Net needs at least one level"),
        (dict(blocks=0), "at least one level, one block"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    layer = Attention(8, 4).double()
    nn.init.normal_(layer.out.weight)
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64)
    q, k, v = (part[:, None].mT for part in layer.query_key_value(layer.norm(x)).flatten(2).chunk(3, dim=1))
    h = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
    assert torch.allclose(layer(x), x + layer.out(h), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recomputing_changes_no_gradient_and_keeps_less(layout):
    def run(recompute):
        torch.manual_seed(0)
        network = UNet(16, 3, 3, 16, (1, 2), 1, (8,), dropout=0.2, groups=8, recompute=recompute)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        network.to(memory_format=layout)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            y = network(torch.randn(8, 3, 16, 16), torch.arange(8))
        y.square().sum().backward()
        return [y.detach(), *(parameter.grad for parameter in network.parameters())], sum(kept)

    (plain, much), (recomputed, little) = run(False), run(True)
    for mine, theirs in zip(recomputed, plain, strict=True):
        assert torch.equal(mine, theirs)
    assert little < 0.3 * much


@pytest.mark.parametrize("classes", [0, 3])
def test_one_time_of_a_batch_is_embedded_once_and_is_the_same(classes):
    torch.manual_seed(0)
    network = UNet(8, 1, 1, 8, (1, 2), 1, (4,), 0.0, 4, classes=classes).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    process = Process(Linear(T=20).beta())
    model = Diffusion(network.eval(), process, Eps(), FixedSmall())
    model = model.given(torch.tensor([0, 2, 3])) if classes else model
    seen = []
    network.time.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    each = model.p(x, torch.full((3,), 7), clip=True)
    shared = model.p(x, same(7, x), clip=True)
    assert seen == [(3,), (1,)]
    for mine, theirs in zip(shared, each, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    gradient = [
        torch.autograd.grad(model.predict(x, t).y.sum(), network.time.first.weight)[0]
        for t in (same(7, x), torch.full((3,), 7))
    ]
    assert torch.allclose(*gradient, rtol=1e-10)


def test_samplers_and_the_bound_embed_one_time_for_a_batch():
    torch.manual_seed(0)
    network = UNet(8, 1, 1, 8, (1, 2), 1, (4,), 0.0, 4).eval()
    model = Diffusion(network, Process(Linear(T=20).beta()), Eps(), FixedSmall(), 17)
    seen = []
    network.time.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.inference_mode():
        Ancestral(3).sample(model, lambda step: torch.randn(5, 1, 8, 8))
        bound(model, torch.zeros(5, 1, 8, 8), lambda step: torch.randn(5, 1, 8, 8))
    assert seen == [1] * (3 + 20)
