"""The kernels of a CPU: the same function and gradients as torch's in float64, and what they are used for.

They are operators of torch: what records or transforms operations sees them, and gets the same numbers.
"""

import copy
import ctypes
import pickle
import re
import subprocess

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ddpm.kernels import convolution, group_norm, native
from ddpm.kernels.convolution import Convolution
from ddpm.kernels.group_norm import GroupNorm
from ddpm.network.unet import UNet
from ddpm.setup.fused import fuse, replaced

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _compiler():
    if native.compiler() is None:
        pytest.fail("these tests need a compiler of C++, g++ or clang++")
    assert native.library() is not None


@pytest.fixture
def used(monkeypatch):
    """The names of the kernels that ran, in order."""
    names, call = [], native.Kernel.__call__

    def spy(kernel, **arguments):
        names.append(kernel.name)
        call(kernel, **arguments)

    monkeypatch.setattr(native.Kernel, "__call__", spy)
    return names


def error(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def gradients(run, *inputs):
    """What `run` returns, and the gradients of its product with fixed numbers."""
    inputs = [each.detach().requires_grad_() for each in inputs]
    y = run(*inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad(y, inputs, weight.contiguous(memory_format=LAST))]


class Normalisation(GroupNorm):
    """One that is followed by what it is told."""

    def __init__(self, groups, channels, silu=True, dropout=0.0):
        super().__init__(groups, channels, eps=1e-6)
        self.settings = silu, dropout

    def forward(self, x, shift=None):
        silu, dropout = self.settings
        return super().forward(x, shift, silu, dropout if self.training else 0.0)


def convolution_layer(c_in, c_out, kernel=(3, 3), padding=(1, 1), rectified=False):
    kind = convolution.Rectified if rectified else Convolution
    return kind(c_in, c_out, kernel, padding=padding).to(memory_format=LAST)


def winograd(padding, tile):
    return lambda x, weight, bias: convolution.winograd(x, weight, bias, padding, tile, False)


def normalised(x, shift, weight, bias, groups, silu):
    y = F.group_norm(x if shift is None else x + shift[:, :, None, None], groups, weight, bias, 1e-6)
    return F.silu(y) if silu else y


# The mean is far from zero and differs between channels: sums of squares alone would lose all digits.
@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (32, 8), (24, 3), (40, 1)])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
def test_group_norm_is_that_of_torch(used, channels, groups, silu, shifted, dtype, tolerance):
    torch.manual_seed(0)
    x = (torch.randn(3, channels, 9, 7) + 30 * torch.randn(channels, 1, 1)).to(dtype)
    shift = [10 * torch.randn(3, channels)] if shifted else []
    layer = Normalisation(groups, channels, silu)
    weight, bias = nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)

    def mine(x, weight, bias, shift=None):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, shift))

    found = gradients(mine, x.contiguous(memory_format=LAST), weight, bias, *shift)
    expected = gradients(
        lambda x, weight, bias, shift=None: normalised(x, shift, weight, bias, groups, silu),
        *(each.double() for each in (x, weight, bias, *shift)),
    )
    assert used == ["group_norm", "group_norm_backward"]
    assert found[0].dtype == found[1].dtype == dtype
    assert found[0].is_contiguous(memory_format=LAST)
    for mine, theirs in zip(found, expected, strict=True):
        if theirs.norm() > 1e-9:  # what is added to a whole group has no gradient
            assert error(mine, theirs) < tolerance


def test_numbers_that_are_not_finite_stay_so():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 4, 4).to(dtype).contiguous(memory_format=LAST)
        x[0, 3, 2, 1] = float("nan")
        y = Normalisation(2, 8)(x)
        assert y[0, :4].isnan().all()
        assert y[0, 4:].isfinite().all()
        assert y[1].isfinite().all()


def test_large_activations_neither_overflow_nor_vanish():
    x = torch.tensor([-1.0, 1.0]).repeat(8)[None, :, None, None].expand(1, 16, 4, 4)
    layer = Normalisation(1, 16)
    nn.init.constant_(layer.weight, 200.0)
    y = layer(x.contiguous(memory_format=LAST))
    assert y[x > 0].sub(200).abs().max() < 0.01
    assert y[x < 0].abs().max() < 1e-30


def test_dropout_drops_that_share_scales_the_rest_and_is_the_same_in_the_gradient(used):
    layer = Normalisation(4, 32, dropout=0.3)
    x = torch.randn(64, 32, 16, 16).contiguous(memory_format=LAST)
    kept = Normalisation(4, 32)(x)
    torch.manual_seed(0)
    y = layer(x)
    dropped = y == 0
    assert abs(dropped.double().mean() - 0.3) < 5 * (0.3 * 0.7 / x.numel()) ** 0.5
    assert torch.allclose(y[~dropped], (kept / 0.7)[~dropped])
    # Neighbours in any direction are dropped independently, and so are two draws.
    for a, b in ((dropped[1:], dropped[:-1]), (dropped[:, 1:], dropped[:, :-1]), (dropped[..., 1:], dropped[..., :-1])):
        assert abs((a & b).double().mean() - 0.09) < 0.002
    assert abs((dropped & (layer(x) == 0)).double().mean() - 0.09) < 0.002
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    torch.manual_seed(0)
    layer.bias.grad = None
    layer(x).sum().backward()
    s = torch.sigmoid(F.group_norm(x, 4, eps=1e-6))
    z = F.group_norm(x, 4, eps=1e-6)
    slope = (s * (1 + z * (1 - s)) * ~dropped / 0.7).sum((0, 2, 3))
    assert error(layer.bias.grad, slope) < 1e-5
    used.clear()
    assert torch.equal(layer.eval()(x), kept)
    assert used == ["group_norm"]


# Odd sizes leave tiles that lie half outside; 48 and 80 channels leave half a panel.
@pytest.mark.parametrize(("batch", "size"), [(8, (8, 8)), (9, (7, 9)), (130, (1, 2)), (3, (33, 12))])
@pytest.mark.parametrize(("c_in", "c_out"), [(16, 16), (48, 80)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-3)])
def test_the_convolution_is_that_of_torch(used, batch, size, c_in, c_out, padding, tile, dtype, tolerance):
    torch.manual_seed(0)
    shape = batch, c_in, *(side + 2 - 2 * padding for side in size)
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=LAST)
    layer = convolution_layer(c_in, c_out)
    mine = winograd((padding, padding), tile)
    found = gradients(mine, x, layer.weight, layer.bias)
    weights = layer.weight.double(), layer.bias.double()
    expected = gradients(lambda x, weight, bias: F.conv2d(x, weight, bias, padding=padding), x.double(), *weights)
    assert used == ["winograd", "winograd", "winograd_weight_gradient"]
    assert [each.dtype for each in found] == [dtype, dtype, torch.float32, torch.float32]
    for each, exact in zip(found, expected, strict=True):
        assert error(each, exact) < tolerance
    # Of fewer, after more: what a thread keeps of the call before must not matter.
    gradients(mine, torch.full_like(x, torch.nan).repeat(3, 1, 1, 1), *weights_of(layer))
    for before, after in zip(found, gradients(mine, x, *weights_of(layer)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("kernel", [kernel for kernel in convolution.TILES if kernel != (3, 3)])
@pytest.mark.parametrize(("padded", "rectified"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("batch", "size"), [(9, (11, 17)), (2, (8, 8))])  # many tiles, and few
def test_other_kernels_are_those_of_torch_without_gradients(used, monkeypatch, kernel, padded, rectified, batch, size):
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "FEWEST", 1)
    padding = tuple(taps // 2 * padded for taps in kernel)
    layer = convolution_layer(48, 80, kernel, padding, rectified)
    x = torch.randn(batch, 48, *size).contiguous(memory_format=LAST)
    exact = F.conv2d(x.double(), *(each.double() for each in weights_of(layer)), padding=padding)
    exact = exact.relu() if rectified else exact
    with torch.inference_mode():
        assert error(layer(x), exact) < 3e-6
    assert used == ["winograd"]
    assert error(layer(x), exact) < 3e-6  # with gradients: by torch
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert used == ["winograd"]


def test_weights_in_float64_are_left_to_torch():
    layer = convolution_layer(16, 16)
    x = torch.randn(32, 16, 4, 4).contiguous(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._tile(x, torch.bfloat16)
        assert not layer.double()._tile(x, torch.bfloat16)


def weights_of(layer):
    return layer.weight.detach(), layer.bias.detach()


def test_weights_may_be_rounded_and_what_is_not_a_number_stays_so():
    torch.manual_seed(0)
    layer = convolution_layer(16, 32).bfloat16()
    x = torch.randn(8, 16, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    x[0, 0, 0, 0] = torch.nan
    with torch.inference_mode():
        found = winograd((1, 1), 4)(x, *weights_of(layer))
    exact = F.conv2d(x.double(), *(each.double() for each in weights_of(layer)), padding=1)
    assert found[0, :, :2, :2].isnan().all()
    assert error(found[1:], exact[1:]) < 3e-3


# More tiles than channels; so few that one of seven threads has none; and fewer than channels, which take another order
# (of seven threads only in the gradient): 75, which fill neither the rows nor the blocks of a product evenly.
@pytest.mark.parametrize(("batch", "channels", "size"), [(5, 32, 16), (18, 16, 4), (3, 176, 20)])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same(threads, batch, channels, size):
    torch.manual_seed(0)
    layer = convolution_layer(channels, channels)
    x = torch.randn(batch, channels, size, size).contiguous(memory_format=LAST)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = gradients(winograd((1, 1), 4), x, *weights_of(layer))
    finally:
        torch.set_num_threads(before)
    exact = gradients(lambda *each: F.conv2d(*each, padding=1), *(each.double() for each in (x, *weights_of(layer))))
    for mine, theirs in zip(found, exact, strict=True):
        assert error(mine, theirs) < 3e-6


def network(**options):
    torch.manual_seed(0)
    made = UNet(16, 3, 3, width=32, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.0, groups=8, **options)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return made


def fused(**options):
    """The network by kernels."""
    made = network(**options).to(memory_format=LAST)
    fuse(made)
    return made


@pytest.mark.parametrize("trained", [True, False])
def test_a_fused_network_is_the_same_network(used, trained):
    plain, fast = network(), fused()
    fast.load_state_dict(plain.state_dict())
    plain.double()
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8) * 100
    with torch.set_grad_enabled(trained):
        found, expected = fast(x, t), plain(x.double(), t)
    assert error(found, expected) < 1e-5
    if trained:
        found.square().mean().backward()
        expected.square().mean().backward()
        for (name, mine), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
            scale = theirs.grad.norm().clamp(min=1e-3)  # biases before a normalisation have none
            assert (mine.grad.double() - theirs.grad).norm() / scale < 1e-5, name
    # Every normalisation, and every convolution of 3x3 and stride 1 but the first and the last.
    norms = sum(isinstance(part, nn.GroupNorm) for part in fast.modules())
    convolutions = [part for part in fast.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    wide = sum(part.in_channels > 3 < part.out_channels and part.stride == (1, 1) for part in convolutions)
    assert used.count("group_norm") == norms
    assert used.count("group_norm_backward") == norms * trained
    assert used.count("winograd") == wide * (1 + trained)
    assert used.count("winograd_weight_gradient") == wide * trained
    assert replaced(fast) == norms + wide


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_a_network_that_nobody_fused_uses_none(used, layout):
    made = network().to(memory_format=layout)
    made(torch.randn(8, 3, 16, 16), torch.arange(8)).sum().backward()
    assert used == []
    assert replaced(made) == 0


def test_images_of_the_usual_layout_use_none(used):
    for layer in (Normalisation(4, 16), convolution_layer(16, 16)):
        layer(images().contiguous())
    assert used == []


def test_fusing_keeps_parameters_names_hooks_training_and_copies(used):
    plain = network()
    names, parameters, seen = [*plain.state_dict()], [*plain.parameters()], []
    plain.middle[0].norm_1.register_forward_hook(lambda *_: seen.append("norm"))
    plain.middle[0].register_forward_pre_hook(lambda *_: seen.append("block"))
    made = plain.eval().to(memory_format=LAST)
    fuse(made)
    count = replaced(made)
    fuse(made)
    assert replaced(made) == count
    assert [*made.state_dict()] == names
    assert all(mine is before for mine, before in zip(made.parameters(), parameters, strict=True))
    assert not any(part.training for part in made.modules())
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    expected = made(x, t)
    assert seen == ["block", "norm"]
    kernels = [*used]
    made.middle[0].norm_1._forward_hooks.clear()
    made.middle[0]._forward_pre_hooks.clear()
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        used.clear()
        assert torch.equal(again(x, t), expected)
        assert used == kernels


def test_layers_that_are_not_torchs_own_keep_their_class():
    class Own(nn.GroupNorm):
        pass

    made = network()
    made.middle[0].norm_1 = Own(8, 64)
    made.middle[2].conv_1 = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")
    made.up[0][0].conv_1 = nn.utils.parametrizations.weight_norm(made.up[0][0].conv_1)
    expected = copy.deepcopy(made).double()
    fuse(made.to(memory_format=LAST))
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    assert error(made(x, t), expected(x.double(), t)) < 1e-5
    assert type(made.middle[0].norm_1) is Own
    assert type(made.middle[2].conv_1) is nn.Conv2d


def test_dropout_of_a_fused_network_is_that_of_training_alone(used):
    made = fused()
    for part in made.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    assert not torch.equal(made(x, t), made(x, t))
    made.eval()
    assert torch.equal(made(x, t), made(x, t))
    assert error(made(x, t), network()(x, t)) < 1e-5


def test_bfloat16_uses_the_kernels_too(used):
    fast, plain = fused(), network()
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        half = fast(x, t)
        assert {*used} == {"group_norm", "winograd"}
        theirs = plain(x, t)
    exact = plain(x, t)
    assert half.dtype == theirs.dtype == torch.bfloat16
    assert 1e-4 < error(half, exact) < 1.2 * error(theirs, exact)


@pytest.mark.parametrize(
    ("batch", "size", "dtype", "tile"),
    [
        (convolution.FEWEST, 4, torch.float32, 4),
        (convolution.FEWEST, 4, torch.bfloat16, 4),
        (convolution.FEWEST - 1, 4, torch.float32, 2),
        (convolution.FEWEST - 1, 4, torch.bfloat16, 0),
        (convolution.FEWEST, 2, torch.float32, 2),
        (convolution.FEWEST - 1, 2, torch.float32, 0),
        (convolution.FEWEST, 4, torch.float64, 0),
    ],
)
def test_few_pixels_are_convolved_by_torch(used, batch, size, dtype, tile):
    layer = convolution_layer(16, 16)
    x = torch.randn(batch, 16, size, size, dtype=dtype).contiguous(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        layer = layer.double() if dtype == torch.float64 else layer
        assert layer._tile(x, dtype) == tile
        assert layer(x).dtype == dtype
    assert used == ["winograd"] * bool(tile)


def test_without_a_compiler_torch_computes_what_was_fused_elsewhere(monkeypatch, used):
    monkeypatch.setattr(native, "compiler", lambda: None)
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    for weights in (True, False):
        fast, plain = fused().requires_grad_(weights), network().double().requires_grad_(weights)
        mine, theirs = (gradients(lambda x, run=run: run(x, t), each) for run, each in ((fast, x), (plain, x.double())))
        assert error(mine[0], theirs[0]) < 1e-5
        assert error(mine[1], theirs[1]) < 1e-5
    assert used == []


def test_a_compiler_that_fails_is_said_once_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ["--no-such-flag"])
    with pytest.warns(UserWarning, match=r"could not be compiled; using PyTorch's instead: .*no-such-flag"):
        assert native.library.__wrapped__() is None
    assert [*tmp_path.rglob("*.so*")] == []


@pytest.mark.slow
def test_what_was_compiled_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    assert native.library.__wrapped__() is not None
    assert len([*tmp_path.rglob("*.so")]) == 1
    monkeypatch.setattr(subprocess, "Popen", None)
    assert native.library.__wrapped__() is not None


def images(batch=8, channels=16, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, size, size, generator=generator).contiguous(memory_format=LAST)


def convolution_of(**parameters):
    """One that uses the kernels, with such parameters in place of its own, and what torch makes of it."""
    torch.manual_seed(0)
    layer = with_parameters(convolution_layer(16, 16), parameters)
    return layer, lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1)


def normalisation_of(dropout=0.0, **parameters):
    torch.manual_seed(0)
    layer = with_parameters(Normalisation(4, 16, dropout=dropout), parameters)

    def theirs(x, shift=None):
        h = F.group_norm(x if shift is None else x + shift[:, :, None, None], 4, layer.weight, layer.bias, 1e-6)
        return F.dropout(F.silu(h), dropout)

    return layer, theirs


def with_parameters(layer, parameters):
    for name, value in parameters.items():
        delattr(layer, name)
        setattr(layer, name, value)
    return layer


def outcome(run, *inputs):
    """What is returned, or the kind of the error."""
    try:
        return run(*inputs)
    except Exception as error:
        return type(error)


def assert_same(found, expected):
    if isinstance(expected, type):
        assert found == expected
    elif expected.device.type == "meta":
        assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    else:
        assert found.dtype == expected.dtype
        assert torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-4)


INPUTS = {
    "other channels": images(channels=32),
    "float64": images().double(),
    "float16": images().half(),
    "bfloat16 with weights in float32": images().bfloat16(),
    "int64": images().long(),
    "complex": images().cfloat(),
    "no batch": torch.randn(16, 8, 8),
    "an empty batch": torch.randn(0, 16, 8, 8).contiguous(memory_format=LAST),
    "five dimensions": torch.randn(2, 16, 4, 4, 4),
    "every other pixel": torch.randn(8, 16, 8, 16)[..., ::2],
    "another device": images().to("meta"),
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_images_for_which_there_is_no_kernel_are_computed_or_refused_as_by_torch(x):
    for mine, theirs in (convolution_of(), normalisation_of()):
        if x.dtype == torch.bfloat16 and isinstance(mine, GroupNorm):
            continue  # which there is
        assert_same(outcome(mine, x), outcome(theirs, x))


PARAMETERS = {
    "no bias": {"bias": None},
    "a bias in float64": {"bias": torch.randn(16).double()},
    "a bias in bfloat16": {"bias": torch.randn(16).bfloat16()},
    "a bias with steps": {"bias": torch.randn(32)[::2]},
    "an expanded bias": {"bias": torch.randn(1).expand(16)},
    "a long bias": {"bias": torch.randn(17)},
}
OF_CONVOLUTION = PARAMETERS | {
    "weights with steps": {"weight": torch.randn(16, 16, 6, 6)[..., ::2, ::2]},
    "weights of other channels": {"weight": torch.randn(16, 32, 3, 3).contiguous(memory_format=LAST)},
    "weights of another kernel": {"weight": torch.randn(16, 16, 5, 5).contiguous(memory_format=LAST)},
}
OF_NORMALISATION = PARAMETERS | {
    "a bias elsewhere": {"bias": torch.randn(16, device="meta")},
    "no weight": {"weight": None},
    "a weight with steps": {"weight": torch.randn(32)[::2]},
    "a long weight": {"weight": torch.randn(32)},
    "a weight in bfloat16": {"weight": torch.randn(16).bfloat16()},
}


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(convolution_of, each) for each in OF_CONVOLUTION.values()]
    + [(normalisation_of, each) for each in OF_NORMALISATION.values()],
    ids=[f"convolution, {each}" for each in OF_CONVOLUTION] + [f"normalisation, {each}" for each in OF_NORMALISATION],
)
def test_parameters_for_which_there_is_no_kernel_are_used_or_refused_as_by_torch(make, parameters):
    mine, theirs = make(**parameters)
    assert_same(outcome(mine, images()), outcome(theirs, images()))


SHIFTS = {
    "one for all": torch.randn(1, 16),
    "one for all channels": torch.randn(8, 1),
    "other channels": torch.randn(8, 15),
    "another batch": torch.randn(4, 16),
    "one dimension": torch.randn(16),
    "three dimensions": torch.randn(8, 16, 1),
    "steps": torch.randn(16, 8).T,
    "float64": torch.randn(8, 16).double(),
    "int64": torch.ones(8, 16, dtype=torch.long),
    "another device": torch.randn(8, 16, device="meta"),
}


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shifts_for_which_there_is_no_kernel_are_added_or_refused_as_by_torch(shift, dtype):
    mine, theirs = normalisation_of()
    x = images().to(dtype)
    shift = shift.to(dtype) if shift.dtype == torch.float32 else shift
    found, expected = outcome(mine, x, shift), outcome(theirs, x, shift)
    if isinstance(expected, torch.Tensor) and expected.dtype == torch.bfloat16:
        assert found.dtype == torch.bfloat16
        assert error(found, expected) < 1e-2
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5])
def test_shares_of_dropout_beyond_the_kernel_are_those_of_torch(dropout):
    mine, theirs = normalisation_of(dropout)
    assert_same(outcome(mine, images()), outcome(theirs, images()))


def penalty(run, *inputs):
    """Gradients of ||g||^2 for g the gradient, by the first input, of a linear function of what is returned.

    The function of `run` alone is differentiated again: its own gradient is constant.
    """
    inputs = [each.detach().requires_grad_() for each in inputs]
    y = run(*inputs)
    weight = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y)
    (first,) = torch.autograd.grad((y * weight).sum(), inputs[0], create_graph=True)
    return torch.autograd.grad(first.square().sum(), inputs, allow_unused=True, materialize_grads=True)


def test_second_derivatives_are_those_of_torch(used):
    layer, _ = convolution_of()
    inputs = images(), *weights_of(layer)
    mine = penalty(winograd((1, 1), 4), *inputs)
    theirs = penalty(lambda *each: F.conv2d(*each, padding=1), *(each.double() for each in inputs))
    for found, exact in zip(mine, theirs, strict=True):
        assert (found - exact).norm() <= 1e-5 * exact.norm()
    assert mine[1].norm() > 1

    dropped = Normalisation(4, 16, dropout=0.3)

    def by_kernel(x, shift, weight, bias):
        torch.manual_seed(3)
        return torch.func.functional_call(dropped, {"weight": weight, "bias": bias}, (x, shift))

    torch.manual_seed(0)
    inputs = images(), torch.randn(8, 16), torch.randn(16), torch.randn(16)
    factor = by_kernel(inputs[0], None, torch.zeros(16), torch.ones(16)).double() / F.silu(torch.tensor(1.0))
    assert 0.2 < (factor == 0).double().mean() < 0.4
    mine = penalty(by_kernel, *inputs)
    theirs = penalty(lambda *each: normalised(*each, 4, True) * factor, *(each.double() for each in inputs))
    for found, exact in zip(mine, theirs, strict=True):
        assert error(found, exact) < 1e-5
    assert {*used} == {"winograd", "group_norm"}


@pytest.mark.parametrize("make", [convolution_of, normalisation_of])
@pytest.mark.parametrize("again", [False, True])
def test_gradients_of_a_batch_of_directions_are_those_of_torch(make, again):
    mine, theirs = make()
    x = images().requires_grad_()
    v = torch.randn(3, *x.shape)

    def batched(run):
        inputs = [x, mine.weight, mine.bias]
        return torch.autograd.grad(run(x), inputs, v, is_grads_batched=True, create_graph=again)

    for found, expected in zip(batched(mine), batched(theirs), strict=True):
        assert error(found, expected) < 1e-5


def derivative(run, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, x.sin()))).tangent


def operations(run, x):
    with FlopCounterMode(display=False) as counter:
        run(x)
    return torch.tensor(counter.get_total_flops())


def each_of(run, x):
    """`run` of two batches, through vmap, which sees channels-last images."""
    both = torch.stack([x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1) + 1]).permute(0, 1, 4, 2, 3)
    return torch.vmap(run)(both)


def fake(run, x):
    """What fake tensors say of the result."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return run(mode.from_tensor(x)).to("meta")


TRANSFORMED = {
    "torch.func.jvp": lambda run, x: torch.func.jvp(run, (x,), (x.sin(),))[1],
    "torch.func.grad": lambda run, x: torch.func.grad(lambda x: run(x).square().sum())(x),
    "torch.func.grad twice": lambda run, x: torch.func.grad(
        lambda x: torch.func.grad(lambda x: run(x).pow(3).sum())(x).square().sum()
    )(x),
    "torch.func.hvp": lambda run, x: torch.func.jvp(torch.func.grad(lambda x: run(x).pow(3).sum()), (x,), (x.sin(),))[
        1
    ],
    "torch.vmap": each_of,
    "torch.vmap of torch.func.grad": lambda run, x: each_of(torch.func.grad(lambda x: run(x).square().sum()), x),
    "forward derivatives": derivative,
    "forward derivatives of gradients": lambda run, x: derivative(
        lambda x: torch.autograd.grad(run(x).square().sum(), x, create_graph=True)[0], x.clone().requires_grad_()
    ),
    "a counter of operations": operations,
    "a counter of operations of gradients": lambda run, x: operations(
        lambda x: run(x).sum().backward(), x.clone().requires_grad_()
    ),
    "fake tensors": fake,
    "gradient checkpointing": lambda run, x: torch.autograd.grad(
        checkpoint(run, x.requires_grad_(), use_reentrant=False).square().sum(), x
    )[0],
}


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
@pytest.mark.parametrize("make", [convolution_of, normalisation_of])
def test_what_watches_or_transforms_torchs_operations_finds_the_same(transform, make):
    mine, theirs = make()
    assert_same(transform(mine, images()), transform(theirs, images()))


@pytest.mark.parametrize("trace", [lambda run, x: torch.jit.trace(run, (x,)), lambda run, x: make_fx(run)(x)])
@pytest.mark.parametrize("make", [convolution_of, normalisation_of])
@pytest.mark.filterwarnings("ignore")
def test_a_trace_computes_what_was_traced(used, trace, make):
    mine, theirs = make()
    traced = trace(mine, images())
    used.clear()
    assert_same(traced(images() + 1), theirs(images() + 1))
    assert used == ["winograd" if make is convolution_of else "group_norm"]
    assert_same(traced((images() + 1).contiguous()), theirs(images() + 1))


def test_vmap_draws_what_is_dropped_as_torch_does():
    layer, _ = normalisation_of(dropout=0.5)
    with pytest.raises(RuntimeError, match="randomness"):
        each_of(layer, images())


def samples(dtype=torch.float32):
    """Arguments of every operator."""
    torch.manual_seed(0)
    x, dy, weight = images(4, size=4).to(dtype), images(4, size=4).cos().to(dtype), convolution_layer(16, 16).weight
    bias, shift, seed = torch.randn(16), torch.randn(4, 16), torch.randint(2**62, ())
    settings = 4, 1e-6, True, 0.3, seed
    moments, plain = (group_norm.group_norm(x, each, bias, bias, *settings)[1] for each in (shift, None))
    leaves = [each.detach().requires_grad_() for each in (x, shift, bias.cos(), bias)]
    x, shift, scale, bias = leaves
    narrow = torch.randn(16, 16, 1, 7).contiguous(memory_format=LAST).requires_grad_()
    return [
        (group_norm.group_norm, (x, shift, scale, bias, *settings)),
        (group_norm.group_norm, (x, None, scale, bias, 2, 1e-6, False, 0.0, None)),
        (group_norm.group_norm_backward, (dy.requires_grad_(), x, shift, scale, bias, moments, *settings)),
        (group_norm.group_norm_backward, (dy, x, None, scale, bias, plain, 4, 1e-6, False, 0.0, None)),
        (convolution.winograd, (x, weight, bias, [1, 1], 4, False)),
        (convolution.winograd, (x, weight, bias, [1, 0], 2, True)),
        (convolution.winograd, (x.detach().float().requires_grad_(), narrow, bias, [0, 3], 3, False)),
        (convolution.winograd_image_gradient, (dy, weight, [1, 1], 4)),
        (convolution.winograd_weight_gradient, (x, dy, [1, 1], 2)),
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_registered_completely(number, dtype):
    run, arguments = samples(dtype)[number]
    result = torch.library.opcheck(run, arguments, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-4)
    assert {*result.values()} == {"SUCCESS"}


@pytest.mark.parametrize("number", range(9))
def test_the_formula_in_torchs_operations_is_the_kernels(number):
    run, arguments = samples()[number]
    detached = [each.detach() if isinstance(each, torch.Tensor) else each for each in arguments]
    found = run(*detached)
    with forward_ad.dual_level():
        expected = run(*detached)
    found, expected = ([each] if isinstance(each, torch.Tensor) else each for each in (found, expected))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert error(mine, theirs) < 1e-5
        assert not torch.equal(mine, theirs)  # the kernel's own rounding: two ways


@pytest.mark.parametrize("number", range(9))
def test_gradients_of_every_operator_are_those_of_torch(number):
    run, arguments = samples()[number]
    inputs = [each for each in arguments if isinstance(each, torch.Tensor) and each.requires_grad]

    def total(run):
        results = run(*arguments)
        results = [results] if isinstance(results, torch.Tensor) else results[: 1 + (len(arguments) > 9)]
        return sum((each * torch.linspace(-1, 1, each.numel()).view(each.shape)).square().sum() for each in results)

    found = torch.autograd.grad(total(run), inputs, allow_unused=True, materialize_grads=True)
    with forward_ad.dual_level():
        expected = torch.autograd.grad(total(run), inputs, allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()
    assert found[0].norm() > 0


def test_what_is_dropped_is_the_same_by_torch():
    seed, x = torch.randint(2**62, ()), images(3, size=5)
    ones = torch.zeros(16), torch.ones(16)
    mine = group_norm.group_norm(x, None, *ones, 4, 1e-6, False, 0.3, seed)[0]
    assert torch.equal(mine, group_norm.kept(x, 0.3, seed))


def changed(number, place, value):
    run, arguments = samples()[number]
    return run, [value if i == place else each for i, each in enumerate(arguments)]


@pytest.mark.parametrize(
    ("number", "place", "value"),
    [
        (0, 0, images(4, size=4).double()),
        (0, 0, images(4, size=4)[0]),
        (0, 0, images(0, size=4)),
        (0, 1, torch.randn(3, 16)),
        (0, 2, torch.randn(15)),
        (0, 3, torch.randn(16).double()),
        (0, 4, 3),
        (0, 4, 0),
        (0, 7, 1.0),
        (0, 8, None),
        (0, 8, torch.ones((), dtype=torch.int32)),
        (2, 0, images(3, size=4)),
        (2, 0, images(4, size=4).bfloat16()),
        (2, 5, torch.randn(2, 4, 3)),
        (2, 5, torch.randn(2, 4, 4).double()),
        (4, 0, images(4, 32, 4)),
        (4, 0, images(0, size=4)),
        (4, 0, images(4, size=4).double()),
        (4, 0, images(4, size=4)[0]),
        (4, 1, torch.randn(16, 16, 2, 2)),
        (4, 1, torch.randn(17, 16, 3, 3)),
        (4, 2, torch.randn(15)),
        (4, 2, torch.randn(16).bfloat16()),
        (4, 3, [-2, 1]),
        (6, 0, images(4, size=4).bfloat16()),
        (7, 0, images(4, 32, 4)),
        (7, 0, images(4, size=4).half()),
        (7, 1, torch.randn(16, 17, 3, 3)),
        (8, 0, images(4, 15, 4)),
        (8, 0, images(4, size=5)),
        (8, 1, images(3, size=4)),
        (8, 1, images(4, size=4).bfloat16()),
        (8, 1, images(4, size=4)[0]),
        (8, 2, [0, 1]),
    ],
)
def test_an_operator_refuses_what_would_not_fit_its_memory(number, place, value):
    run, arguments = changed(number, place, value)
    with pytest.raises(RuntimeError, match=r"has no kernel for|dropout needs a seed"), torch.no_grad():
        run(*arguments)


@pytest.mark.parametrize("number", range(9))
def test_an_operator_takes_any_layout(number):
    run, arguments = samples()[number]
    with torch.no_grad():
        expected = run(*arguments)
        for i, each in enumerate(arguments):
            if isinstance(each, torch.Tensor) and each.dim():
                spread = each.new_empty(*each.shape, 2)[..., 0].copy_(each)
                found = run(*arguments[:i], spread, *arguments[i + 1 :])
                pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
                assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
                assert all(mine.stride() == theirs.stride() for mine, theirs in pairs)


KERNELS = convolution.CONVOLUTION, convolution.WEIGHT_GRADIENT, group_norm.FORWARD, group_norm.BACKWARD
TYPES = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "bool": ctypes.c_bool}


def declared(name):
    """The fields of the struct that a function in C++ takes, and their types."""
    for source in native.SOURCES:
        text = re.sub(r"//.*", "", source.read_text())
        for struct in re.findall(rf"^int {name}\(const (\w+)\* ?\w+\)", text, re.MULTILINE):
            body = re.search(rf"^struct {struct} {{(.*?)^}};", text, re.MULTILINE | re.DOTALL).group(1)
            for line in body.split(";")[:-1]:
                kind, names = re.fullmatch(r"\s*(?:const )?(\w+)\s*(.*)", line, re.DOTALL).groups()
                for each in names.split(","):
                    pointer = each.strip().startswith("*")
                    yield each.strip(" *\n"), ctypes.c_void_p if pointer else TYPES[kind]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_has_the_arguments_that_its_source_declares(kernel):
    assert [*declared(kernel.name)] == [*kernel.fields.items()]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_needs_every_argument_by_its_name(kernel):
    given = dict.fromkeys(kernel.fields)
    for wrong in ({**given, "other": None}, {name: None for name in given if name != "x"}):
        with pytest.raises(TypeError, match=f"{kernel.name} takes x, "):
            kernel(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "half"), [("eager", True), ("aot_eager", False)])
def test_a_fused_network_compiles_as_one_graph_that_uses_the_kernels(used, backend, half):
    x, t = torch.randn(8, 3, 16, 16), torch.arange(8)
    made = fused()
    compiled = torch.compile(made, backend=backend, fullgraph=True)

    def run(called):
        used.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = called(x, t)
        found = [y, *torch.autograd.grad(y.float().square().sum(), [*made.parameters()])]
        return found, sorted(used)

    (expected, kernels), (found, names) = run(made), run(compiled)
    assert names == kernels
    assert {*names} == {kernel.name for kernel in KERNELS}
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= (2e-2 if half else 1e-5) * theirs.norm() + 1e-6


@pytest.mark.parametrize("make", [convolution_of, normalisation_of])
def test_any_of_the_inputs_may_be_without_a_gradient(used, make):
    mine, theirs = make()
    for pattern in range(1, 8):
        inputs = [x, *_] = images(), mine.weight, mine.bias
        for i, each in enumerate(inputs):
            each.requires_grad_(bool(pattern >> i & 1))
        wanted = [each for each in inputs if each.requires_grad]
        found, expected = (torch.autograd.grad(run(x).square().sum(), wanted) for run in (mine, theirs))
        for each, exact in zip(found, expected, strict=True):
            assert error(each, exact) < 1e-5
    assert len(used) >= 14


def test_a_bias_alone_is_trained_by_torch_where_a_kernel_has_no_gradients():
    for kernel, rectified in (((1, 7), False), ((5, 5), False), ((3, 3), True)):
        padding = kernel[0] // 2, kernel[1] // 2
        layer = convolution_layer(16, 16, kernel, padding, rectified)
        layer.weight.requires_grad_(False)
        layer(images()).square().sum().backward()
        y = F.conv2d(images(), layer.weight, layer.bias, padding=padding)
        (expected,) = torch.autograd.grad((y.relu() if rectified else y).square().sum(), layer.bias)
        assert error(layer.bias.grad, expected) < 1e-5


def test_copies_and_pickles_of_layers_compute_the_same():
    for layer, _ in (convolution_of(), normalisation_of()):
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(images()), layer(images()))


MANY = {"c_in": 2**22, "c_out": 2**22, "channels": 2**46}  # a buffer alone exceeds what can be addressed
FEW = {"batch": 64, "height": 4, "width": 4, "kernel_height": 3, "kernel_width": 3, "tile": 4, "pixels": 4, "groups": 1}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_without_memory_for_its_buffers_a_kernel_raises_what_torch_does(kernel):
    given = {name: None if kind is ctypes.c_void_p else kind().value for name, kind in kernel.fields.items()}
    given |= {name: value for name, value in (FEW | MANY).items() if name in given}
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2**46)
    with pytest.raises(RuntimeError, match=f"can't allocate memory for the buffers of {kernel.name}"):
        kernel(**given)


def test_the_seed_of_what_is_dropped_is_of_the_global_generator():
    layer = Normalisation(4, 16, dropout=0.5)
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=LAST)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)
