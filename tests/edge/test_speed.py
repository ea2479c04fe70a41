"""The setting `speed`: what it picks, that it says so, and that float32 stays float32."""

import json

import pytest
import torch

from ddpm.chain.process import Process
from ddpm.commands.sample import sample
from ddpm.kernels import native
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.schedule.linear import Linear
from ddpm.setup import speed
from ddpm.setup.fused import replaced
from ddpm.variance.fixed_small import FixedSmall

CPU = torch.device("cpu")


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(speed, "bfloat16_is_fast", lambda device: True)


@pytest.fixture
def diffusion():
    torch.manual_seed(0)
    network = UNet(8, 1, 1, width=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0, groups=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Diffusion(network.eval(), Process(Linear(T=20).beta()), Eps(), FixedSmall(), 17)


def test_auto_is_bfloat16_only_where_that_is_fast(monkeypatch):
    for is_fast, chosen in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(speed, "bfloat16_is_fast", lambda device, is_fast=is_fast: is_fast)
        assert speed.precision("auto", torch.device("cpu")) == chosen
        assert speed.precision("reference", torch.device("cpu")) == "32-true"


@pytest.mark.parametrize("found", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}, {}])
def test_processors_are_asked_for_their_instructions(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert speed.bfloat16_is_fast(torch.device("cpu")) == any("bf16" in name for name in found)


def test_reference_samples_from_the_model_itself(diffusion, fast):
    assert speed.sampling(diffusion, "reference") is diffusion


def test_auto_samples_in_bfloat16_and_returns_float32(diffusion, fast):
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 10, 20])
    with torch.inference_mode():
        mine, theirs = (each.predict(x, t).y for each in (speed.sampling(diffusion, "auto"), diffusion))
        assert speed.sampling(diffusion, "auto").network(x, t - 1).dtype == torch.float32
    assert 0 < (mine - theirs).norm() / theirs.norm() < 0.03


def test_bfloat16_rounds_a_copy_of_the_weights_once(diffusion, fast):
    network, t = diffusion.network, torch.tensor([1, 10, 20])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copied = speed.sampling(diffusion, "auto").network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    layers = [part for part in copied.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert {part.weight.dtype for part in layers} == {torch.bfloat16}
    x = torch.randn(3, 1, 8, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copied(x, t), network(x, t).float())


def test_training_in_bfloat16_keeps_weights_and_averages_in_float32(train, tmp_path, fast):
    run = train(tmp_path, "speed=auto", "trainer.max_steps=2")
    assert run.trainer.precision == "bf16-mixed"
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for name, value in state.items() if "network" in name} == {torch.float32}


def test_what_the_user_says_of_the_precision_comes_first(train, tmp_path, fast):
    run = train(tmp_path, "speed=auto", "trainer.precision=32-true", "trainer.max_steps=1")
    assert run.trainer.precision == "32-true"


@pytest.mark.slow
def test_an_evaluation_states_in_what_it_sampled(train, compose, tmp_path, fast):
    from ddpm.commands.evaluate import evaluate

    train(tmp_path / "run", "trainer.max_steps=1")
    options = (f"ckpt='{tmp_path}/run/last.ckpt'", "metrics=[is,nll]", "features=classifier", "n_samples=16")
    for chosen, dtype in (("auto", "bfloat16"), ("reference", "float32")):
        out = f"output_dir='{tmp_path}/{chosen}'"
        evaluate(compose("evaluate", *options, f"speed={chosen}", "nll.n_images=4", out))
        found = json.loads(next((tmp_path / chosen).rglob("metrics.json")).read_text())
        assert found["samples"]["samples_dtype"] == dtype
        assert found["nll"]["dtype"] == "float32"


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_another_speed_is_refused(compose, bare, train, tmp_path, name):
    from ddpm.commands.evaluate import evaluate

    if name == "train":
        with pytest.raises(ValueError, match="speed must be auto"):
            train(tmp_path, "speed=fast")
    else:
        with pytest.raises(ValueError, match="speed must be auto"):
            evaluate(compose("evaluate", "ckpt=nowhere", "speed=fast"))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("half", [False, True])
def test_the_network_compiles_as_one_graph_and_is_the_same(classes, half):
    torch.manual_seed(0)
    network = UNet(8, 1, 1, 8, (1, 2), 1, (4,), 0.0, 4, classes=classes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    called = speed.BFloat16(network) if half else network
    label = (torch.tensor([0, 1, 3]),) if classes else ()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 10, 19])
    compiled = torch.compile(called, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, t, *label), called(x, t, *label))
    assert torch.equal(compiled(x, t), called(x, t))


@pytest.fixture
def compiled(monkeypatch):
    """The kinds of networks that are compiled, without a compiler."""
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: seen.append(type(module)))
    return seen


@pytest.mark.slow
def test_a_network_is_compiled_only_if_that_is_asked_for(train, compose, tmp_path, compiled, fast):
    train(tmp_path / "plain", "trainer.max_steps=2")
    assert compiled == []
    train(tmp_path / "run", "trainer.max_steps=2", "compile=true")
    assert compiled == [UNet]
    options = (f"ckpt={json.dumps(str(tmp_path / 'run' / 'last.ckpt'))}", "n=2", "compile=true")
    for setting, kind in (("reference", UNet), ("auto", speed.BFloat16)):
        sample(compose("sample", *options, f"speed={setting}"))
        assert compiled.pop() is kind


def test_auto_uses_the_kernels_on_a_cpu_and_says_so(train, tmp_path, capsys):
    for chosen, layout, said in (
        ("auto", torch.channels_last, "custom kernels"),
        ("reference", None, "torch's kernels"),
    ):
        run = train(tmp_path / chosen, f"speed={chosen}", "trainer.precision=32-true", "trainer.max_steps=1")
        networks = run.module.diffusion.network, run.module.ema.network
        for each in networks:
            assert each.conv_out.weight.is_contiguous(memory_format=layout or torch.contiguous_format)
        first, second = (replaced(each) for each in networks)
        assert first == second
        assert bool(first) == (chosen == "auto")
        assert f"{said} (speed={chosen})" in " ".join(capsys.readouterr().out.split())


def test_without_a_compiler_auto_leaves_the_network_and_says_so(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    run = train(tmp_path, "speed=auto", "trainer.precision=32-true", "trainer.max_steps=1")
    assert replaced(run.module) == 0
    assert run.module.diffusion.network.conv_out.weight.is_contiguous()
    assert "torch's kernels (speed=auto)" in " ".join(capsys.readouterr().out.split())


def test_arrange_counts_the_layers_that_it_replaced(diffusion):
    network = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.Conv2d(3, 16, 3))
    assert speed.arrange(network, "reference", CPU) == 0
    assert speed.arrange(network, "auto", torch.device("meta")) == 0
    assert speed.arrange(network, "auto", CPU) == 2
    assert speed.arrange(torch.nn.Conv2d(3, 3, 3), "auto", CPU) == 0
    assert speed.arrange(diffusion.network, "auto", CPU) > 10
    assert replaced(speed.BFloat16(diffusion.network)) == replaced(diffusion.network)


@pytest.mark.slow
def test_an_evaluation_and_samples_use_the_kernels_if_that_is_asked_for(train, compose, tmp_path, monkeypatch):
    names, call = set(), native.Kernel.__call__
    monkeypatch.setattr(
        native.Kernel, "__call__", lambda kernel, **given: (names.add(kernel.name), call(kernel, **given))[1]
    )
    train(tmp_path, "speed=reference", "trainer.max_steps=1")
    assert names == set()
    for chosen, expected in (("reference", set()), ("auto", {"group_norm"})):
        sample(compose("sample", f"ckpt={json.dumps(str(tmp_path / 'last.ckpt'))}", "n=2", f"speed={chosen}"))
        assert names >= expected
        assert bool(names) == bool(expected)


@pytest.mark.slow
def test_the_layout_of_the_weights_does_not_change_a_resumed_run(train, tmp_path):
    """A fused optimizer takes weights and averages of gradients for laid out alike."""

    def kernels(folder):
        state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        return torch.cat([value.flatten() for name, value in state.items() if value.dim() == 4 and "ema" not in name])

    def run(name, speed, steps, *options):
        folder = tmp_path / name
        smooth = "optimizer.eps=0.01"  # or rounding would decide the sign of the first steps
        train(
            folder,
            smooth,
            "network.dropout=0",
            "trainer.precision=32-true",
            f"speed={speed}",
            f"trainer.max_steps={steps}",
            *options,
        )
        return kernels(folder)

    whole = run("whole", "reference", 6)
    for first, second in (("auto", "reference"), ("reference", "auto")):
        before = run(first, first, 3)
        after = run(first, second, 6, f"ckpt={json.dumps(str(tmp_path / first / 'last.ckpt'))}")
        assert (after - whole).norm() < 1e-4 * (whole - before).norm()


@pytest.mark.slow
def test_features_in_bfloat16_are_asked_for_stated_and_nearly_the_same(train, compose, tmp_path):
    from ddpm.commands.evaluate import evaluate

    train(tmp_path / "run", "trainer.max_steps=1")
    options = (f"ckpt={json.dumps(str(tmp_path / 'run' / 'last.ckpt'))}", "metrics=[fid]", "features=classifier")
    fid = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        evaluate(compose("evaluate", *options, "n_samples=64", f"features_dtype={dtype}", f"output_dir='{out}'"))
        found = json.loads(next(out.rglob("metrics.json")).read_text())["samples"]
        assert (found["dtype"], found["samples_dtype"]) == (dtype, "float32")
        fid[dtype] = found["fid"]
    assert 0 < abs(fid["bfloat16"] / fid["float32"] - 1) < 0.02
    with pytest.raises(ValueError, match="features_dtype must be one of float32, bfloat16, got 'half'"):
        evaluate(compose("evaluate", *options, "features_dtype=half"))
