"""Compare speed with other packages: python benchmarks/speed.py OUT writes OUT/speed.json and OUT/speed.md.

Each comparison runs interleaved in one process on the same batch, and each part has its own process; the table gives
medians and ratios. `diffusers` is the same architecture with the same number of parameters; `lucidrains`
(denoising-diffusion-pytorch) is another one of about that size. All of them keep freed memory
(`ddpm.kernels.allocator`). Only ratios are meaningful, because the machine's speed drifts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import Unet
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA as PytorchEMA
from torch import Tensor, nn

from ddpm.chain.process import Process
from ddpm.chain.tables import same
from ddpm.data.batches import TrainBatches
from ddpm.data.fashion_mnist import FashionMNIST
from ddpm.data.scaling import to_unit
from ddpm.kernels import allocator
from ddpm.metrics import dataset_bound
from ddpm.metrics import inception as ours_inception
from ddpm.metrics.fid import FID
from ddpm.model.diffusion import Diffusion
from ddpm.model.ema import EMA
from ddpm.network.unet import UNet
from ddpm.parameterization.eps import Eps
from ddpm.schedule.linear import Linear
from ddpm.setup import speed
from ddpm.support.files import write_json, write_text
from ddpm.variance.fixed_large import FixedLarge


class Case(NamedTuple):
    """A network and the batch it is measured with."""

    name: str
    batch: int
    channels: int
    size: int
    width: int
    multipliers: tuple[int, ...]
    attention: int
    groups: int
    repeats: int


CASES = (
    Case("28x28, 1.6 M parameters", 64, 1, 28, 32, (1, 2, 2), 7, 8, 13),
    Case("CIFAR10, 35.7 M parameters", 8, 3, 32, 128, (1, 2, 2, 2), 16, 32, 9),
)


def networks(case: Case) -> dict[str, nn.Module]:
    """Our network and the peers', without dropout, which each package draws differently."""
    ours = UNet(
        case.size, case.channels, case.channels, case.width, case.multipliers, 2, (case.attention,), 0.0, case.groups
    )
    at = [case.size // 2**i == case.attention for i in range(len(case.multipliers))]
    diffusers = UNet2DModel(
        sample_size=case.size,
        in_channels=case.channels,
        out_channels=case.channels,
        block_out_channels=[case.width * m for m in case.multipliers],
        layers_per_block=2,
        down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in at],
        up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(at)],
        norm_num_groups=case.groups,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    lucidrains = Unet(dim=case.width, dim_mults=case.multipliers, channels=case.channels)
    return {REFERENCE: ours, "diffusers": diffusers, "lucidrains": lucidrains}


REFERENCE, FLOAT32, AUTO = "ddpm, speed=reference", "ddpm, float32", "ddpm, speed=auto"
CPU = torch.device("cpu")


def ours(case: Case) -> nn.Module:
    """Our network with speed=auto."""
    network = networks(case)[REFERENCE]
    speed.arrange(network, "auto", CPU)
    return network


def call(name: str, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The prediction."""
    return network(x, t).sample if name == "diffusers" else network(x, t)


def interleaved(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant; the first round is a warm-up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def training_step(name: str, network: nn.Module, case: Case, half: bool) -> Callable[[], None]:
    """Loss, gradients, clipping, Adam and weight averaging, each package with its own averaging."""
    x, noise = torch.randn(2, case.batch, case.channels, case.size, case.size).unbind()
    t = torch.randint(1000, (case.batch,))
    optimizer = torch.optim.Adam(
        network.parameters(), 1e-4, fused=name.startswith("ddpm") or None
    )  # as conf/optimizer has it
    average: Callable[[], None]
    if name == "diffusers":
        ema = EMAModel(network.parameters(), 0.9999)
        average = lambda: ema.step(network.parameters())  # noqa: E731
    elif name == "lucidrains":
        theirs = PytorchEMA(network, beta=0.9999, update_every=10)
        average = theirs.update
    else:
        mine = EMA(network)
        average = lambda: mine.update(network, 1000)  # noqa: E731

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.mse_loss(call(name, network, x, t).float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average()

    return step


def compared(seconds: dict[str, float], unit: float) -> dict[str, dict[str, float]]:
    """Rates, and their ratios to the same architecture in diffusers."""
    return {
        name: {"rate": unit / each, "ratio_to_diffusers": seconds["diffusers"] / each} for name, each in seconds.items()
    }


def training(case: Case) -> dict[str, Any]:
    """Images per second of training."""
    steps = {name: training_step(name, network, case, False) for name, network in networks(case).items()}
    steps[FLOAT32] = training_step(FLOAT32, ours(case), case, False)
    steps[AUTO] = training_step(AUTO, ours(case), case, speed.bfloat16_is_fast(CPU))
    return compared(interleaved(steps, case.repeats), case.batch)


def sampling(case: Case) -> dict[str, Any]:
    """Images times network evaluations per second."""
    x = torch.randn(case.batch, case.channels, case.size, case.size)
    t = same(500, x)  # marked as one time, as our samplers do; to the peers it is an ordinary tensor
    nets = networks(case) | {FLOAT32: ours(case)}
    nets[AUTO] = speed.BFloat16(ours(case)) if speed.bfloat16_is_fast(CPU) else ours(case)
    nets = {name: network.eval().requires_grad_(False) for name, network in nets.items()}
    runs = {name: (lambda name=name, network=network: call(name, network, x, t)) for name, network in nets.items()}
    with torch.inference_mode():
        return compared(interleaved(runs, case.repeats), case.batch)


def distance(network: Callable[[Tensor], Any], samples: Tensor, real: Tensor) -> float:
    """FID on the features of a network."""
    sets = (
        {"features": torch.cat([network(batch)[0].float() for batch in each.split(32)])} for each in (samples, real)
    )
    return FID()(*sets)["fid"]


def inception_features() -> dict[str, Any]:
    """Images per second through InceptionV3, and FID in float32 and bfloat16.

    The weights are random, with normalisations fitted to images; they are as fast as the real ones. FID compares 256
    test images of Fashion-MNIST with the same images plus noise, whose deviation is a tenth of the range.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Random(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    theirs.load_state_dict_from_url = lambda *args, **kwargs: {}
    plain, mine = (Random("inception-v3-compat", ["2048"]).requires_grad_(False) for _ in range(2))
    real = FashionMNIST().load("test").pixels(torch.arange(256)).expand(-1, 3, -1, -1)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over all batches
    plain.train()(real[:64])
    plain.eval()
    nn.Module.load_state_dict(mine, plain.state_dict())
    mine = ours_inception.Folded(mine.eval())

    def half(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return mine(images)

    networks = {"torch-fidelity": plain, "ddpm, float32": mine, "ddpm, bfloat16": half}
    images = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8)
    noisy = (real + 25.5 * torch.randn(real.shape)).clamp(0, 255).byte()
    with torch.inference_mode():
        features = {name: network(images)[0].float() for name, network in networks.items()}
        seconds = interleaved({name: (lambda call=call: call(images)) for name, call in networks.items()}, 6)
        fid = {name: distance(networks[name], noisy, real) for name in networks if name != "torch-fidelity"}
    exact = features["torch-fidelity"]
    found = {
        name: {
            "rate": 32 / each,
            "ratio": seconds["torch-fidelity"] / each,
            "relative_difference": float((features[name] - exact).norm() / exact.norm()),
        }
        for name, each in seconds.items()
    }
    return {"networks": found, "fid": fid}


def data() -> dict[str, Any]:
    """Fashion-MNIST batches of 64 as the training step gets them, images per second."""
    images = FashionMNIST().load("train")
    batches = TrainBatches(len(images), 64)
    start = time.perf_counter()
    for k in range(500):
        to_unit(images.pixels(batches.batch(k)), 256)
    return {"rate": 500 * 64 / (time.perf_counter() - start)}


def commands() -> dict[str, Any]:
    """Seconds from the command to the end of the first step, and the overhead of Lightning and callbacks per step."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for steps in (1, 201):
            options = [
                "speed=reference",
                "callbacks=[throughput,progress]",
                "trainer.val_check_interval=1000",
                "network.width=8",
            ]
            options += ["network.groups=4", f"trainer.max_steps={steps}", f"hydra.run.dir={folder}/{steps}"]
            start = time.perf_counter()
            subprocess.run([sys.executable, str(root / "train.py"), *options], check=True, capture_output=True)
            seconds[steps] = time.perf_counter() - start
    case = Case("digits", 64, 1, 8, 8, (1, 2), 4, 4, 200)
    network = UNet(8, 1, 1, 8, (1, 2), 2, (4,), 0.0, 4)
    plain = interleaved({"step": training_step(REFERENCE, network, case, False)}, 200)["step"]
    step = (seconds[201] - seconds[1]) / 200
    return {
        "start": seconds[1],
        "step": step,
        "plain_step": plain,
        "overhead": step - plain,
        "share_of_half_a_second": (step - plain) / 0.5,
    }


PEAK = """
import sys
sys.path.insert(0, {folder!r})
from speed import CASES, allocator, networks, ours, training_step
allocator.keep_memory()
case = CASES[{number}]
run = training_step({name!r}, networks(case).get({name!r}) or ours(case), case, {half})
for _ in range(3):
    run()
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def memory(number: int) -> dict[str, float]:
    """Peak memory of a process that takes three training steps, MB; each package has its own process."""
    found = {}
    for name in (REFERENCE, "diffusers", "lucidrains", FLOAT32, AUTO):
        half = name == AUTO and speed.bfloat16_is_fast(CPU)
        code = PEAK.format(folder=str(Path(__file__).parent), number=number, name=name, half=half)
        done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
        found[name] = int(done.stdout.split()[-1]) / 1024
    return found


def likelihood() -> dict[str, float]:
    """Seconds for the bound of one Fashion-MNIST image, from all T terms and from five."""
    case = CASES[0]
    network = ours(case).eval().requires_grad_(False)
    model = Diffusion(network, Process(Linear().beta()), Eps(), FixedLarge())
    images = FashionMNIST().load("test")
    n = 256
    with torch.inference_mode():
        start = time.perf_counter()
        dataset_bound.full(model.respace(100), images, n, 0, n)
        full = 10 * (time.perf_counter() - start) / n  # a tenth of the terms, times ten
        start = time.perf_counter()
        dataset_bound.sampled(model, images, 8 * n, 0, n, 5)
        sampled = (time.perf_counter() - start) / (8 * n)
    return {"full": full, "sampled": sampled, "ratio": full / sampled}


def conv_peak() -> dict[str, float]:
    """The fastest convolution found, GFLOP/s."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        best = 0.0
        for channels, size, batch in ((128, 32, 16), (256, 16, 16), (256, 28, 16)):
            layer = nn.Conv2d(channels, channels, 3, padding=1).to(dtype).requires_grad_(False)
            x = torch.randn(batch, channels, size, size, dtype=dtype)
            flops = 2 * batch * channels**2 * 9 * size**2
            best = max(best, flops / interleaved({"conv": lambda layer=layer, x=x: layer(x)}, 8)["conv"])
        found[str(dtype).removeprefix("torch.")] = best / 1e9
    return found


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = ["| work | package | rate | ratio to diffusers |", "|---|---|---|---|"]
    for part, unit in (("training", "images/s"), ("sampling", "image evaluations/s")):
        for name, packages in found[part].items():
            for package, each in packages.items():
                rows.append(
                    f"| {part}, {name} | {package} | {each['rate']:.1f} {unit} | {each['ratio_to_diffusers']:.2f} |"
                )
    for name, packages in found["memory"].items():
        for package, megabytes in packages.items():
            rows.append(
                f"| peak memory of training, {name} | {package} | {megabytes:,.0f} MB "
                f"| {megabytes / packages['diffusers']:.2f} |"
            )
    rows += ["", "| work | result |", "|---|---|"]
    loop, peak = found["commands"], found["conv_peak_gflops"]
    for name, each in found["inception"]["networks"].items():
        rows.append(
            f"| Inception features of 32x32 images, {name} | {each['rate']:.1f} images/s, {each['ratio']:.2f} times "
            f"torch-fidelity, relative difference {each['relative_difference']:.1e} |"
        )
    fids = found["inception"]["fid"]
    rows += [
        f"| FID by Inception features with random weights | {fids['ddpm, float32']:.3f} in float32, "
        f"{fids['ddpm, bfloat16']:.3f} in bfloat16 |",
        f"| bits/dim of one Fashion-MNIST image | {1e3 * found['likelihood']['sampled']:.1f} ms by five evaluations, "
        f"{found['likelihood']['full']:.2f} s by all 1000: {found['likelihood']['ratio']:.0f} times less |",
        f"| Fashion-MNIST batches, scaled | {found['data']['rate']:,.0f} images/s |",
        f"| from the command to the end of the first step | {loop['start']:.1f} s |",
        f"| what Lightning and the callbacks add to a step | {1e3 * loop['overhead']:.1f} ms, "
        f"{loop['share_of_half_a_second']:.1%} of half a second |",
        f"| fastest convolution | {peak['float32']:.0f} GFLOP/s in float32, {peak['bfloat16']:.0f} in bfloat16 |",
    ]
    return "\n".join([*rows, "", found["machine"], ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of speed.json and speed.md")
    parser.add_argument("--only", nargs="+", help="parts of speed.json to measure; all by default")
    options = parser.parse_args()
    out = options.out
    torch.manual_seed(0)
    allocator.keep_memory()
    import diffusers

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    parts: dict[str, Callable[[], Any]] = {
        "machine": lambda: (
            f"{os.cpu_count()} cores of {names[0]}, torch {torch.__version__}, diffusers {diffusers.__version__}."
        ),
        "conv_peak_gflops": conv_peak,
        "training": lambda: {case.name: training(case) for case in CASES},
        "sampling": lambda: {case.name: sampling(case) for case in CASES},
        "memory": lambda: {case.name: memory(number) for number, case in enumerate(CASES)},
        "likelihood": likelihood,
        "inception": inception_features,
        "data": data,
        "commands": commands,
    }
    if unknown := {*(options.only or ())} - {*parts}:
        parser.error(f"--only takes {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "speed.json"
    asked = options.only or [*parts]
    if len(asked) > 1:  # each in its own process, so that no other part has used its memory
        for name in asked:
            print(f"measuring {name}", flush=True)
            command = [sys.executable, __file__, str(out), "--only", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    else:
        before = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, before | {asked[0]: parts[asked[0]]()})
    found = json.loads(path.read_text())
    if found.keys() >= parts.keys():
        write_text(out / "speed.md", table(found))
        print(table(found))


if __name__ == "__main__":
    main()
