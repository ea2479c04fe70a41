"""Compare quality against training time with peers: python benchmarks/time_to_quality.py OUT --work FOLDER

Each package trains on Fashion-MNIST with its own documented recipe, at about the same number of parameters, for the
same time on the same cores: `train.py experiment=fashion_mnist`; the training example of diffusers; the README of
denoising-diffusion-pytorch. Then all are sampled with the same solver, noise and number of evaluations.

Time is counted in steps: the packages' rates are measured in turn for a few rounds, and each package trains for the
steps that fit into the time at its median rate. Other load during training therefore changes nothing. Results already
in --work (rates, weights, rows) are not computed again, so an interrupted run continues.

Writes time_to_quality.json, .md and .png into OUT.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from matplotlib.figure import Figure
from torch import Tensor, nn

from ddpm.chain.gaussian import bits_per_dim
from ddpm.chain.process import Process
from ddpm.commands import plots
from ddpm.data.batches import TrainBatches
from ddpm.data.fashion_mnist import FashionMNIST
from ddpm.data.scaling import to_unit
from ddpm.kernels import allocator
from ddpm.metrics import dataset_bound
from ddpm.metrics.feature_network import feature_network
from ddpm.metrics.features import real_features, sample_features
from ddpm.metrics.fid import FID
from ddpm.model.diffusion import Diffusion
from ddpm.parameterization.eps import Eps
from ddpm.parameterization.v import V
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.setup import loading, speed
from ddpm.support.bars import Steps
from ddpm.support.files import write_json, write_tensors, write_text
from ddpm.support.pictures import grid, save_png
from ddpm.variance.fixed_large import FixedLarge

ROOT = Path(__file__).parents[1]
SHARES = (0.25, 0.5, 1.0)
"""Fractions of the time after which the weights are kept."""
SEED = 0


class Read(nn.Module):
    """A peer's network with the call signature that a Diffusion expects."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(x, t)


class Diffusers:
    """UNet2DModel and the example train_unconditional.py: AdamW, cosine learning rate, EMA with power 3/4."""

    batch = 16

    def __init__(self, steps: int) -> None:
        self.network = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            block_out_channels=[32, 64, 64],
            layers_per_block=2,
            down_block_types=["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            norm_num_groups=8,
            attention_head_dim=None,
        )
        self.scheduler = DDPMScheduler(1000)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6)
        self.rate = get_cosine_schedule_with_warmup(self.optimizer, 500, steps)
        self.ema = EMAModel(self.network.parameters(), 0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step(self, x_0: Tensor) -> None:
        noise, t = torch.randn_like(x_0), torch.randint(1000, (len(x_0),))
        predicted = self.network(self.scheduler.add_noise(x_0, noise, t), t).sample
        F.mse_loss(predicted, noise).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())

    def weights(self) -> dict[str, Tensor]:
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        found = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.ema.restore(self.network.parameters())
        return found

    def model(self, weights: dict[str, Tensor]) -> Diffusion:
        self.network.load_state_dict(weights)

        read = Read(lambda x, t: self.network(x, t).sample, self.network)
        return Diffusion(read, Process(self.scheduler.betas.double()), Eps(), FixedLarge()).eval()


class Lucidrains:
    """Unet, GaussianDiffusion with its defaults (v, sigmoid), and the Trainer as used in its README."""

    batch = 64  # two times 32

    def __init__(self, steps: int) -> None:
        self.network = Unet(dim=32, dim_mults=(1, 2, 2), channels=1)
        self.diffusion = GaussianDiffusion(self.network, image_size=28, timesteps=1000)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), 8e-5, (0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)

    def step(self, x_0: Tensor) -> None:
        for half in ((x_0 + 1) / 2).chunk(2):
            (self.diffusion(half) / 2).backward()
        nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.ema.ema_model.model.state_dict().items()}

    def model(self, weights: dict[str, Tensor]) -> Diffusion:
        self.network.load_state_dict(weights)
        betas = self.diffusion.betas.double().clamp(max=0.999)
        read = Read(lambda x, t: self.network(x, t.float()), self.network)
        return Diffusion(read, Process(betas), V(), FixedLarge()).eval()


PEERS: dict[str, Callable[[int], Any]] = {"diffusers": Diffusers, "lucidrains": Lucidrains}
PACKAGES = ("ddpm", *PEERS)


def run_ours(folder: Path, steps: int, keep: int, *options: str) -> float:
    """Train with train.py; returns images per second."""
    command = [sys.executable, str(ROOT / "train.py"), "experiment=fashion_mnist", f"hydra.run.dir={folder}"]
    command += [f"trainer.max_steps={steps}", "callbacks=[throughput,progress,checkpoint]"]
    command += [f"callbacks.checkpoint.every_n_steps={keep}", f"callbacks.checkpoint.keep_every_n_steps={keep}"]
    command += [f"trainer.val_check_interval={steps + 1}", f"seed={SEED}", *options]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((folder / "results.json").read_text())["metrics"]["images_per_second"]


def batches(size: int) -> Callable[[int], Tensor]:
    """k -> images in [-1, 1]."""
    images = FashionMNIST().load("train")
    order = TrainBatches(len(images), size, SEED)
    return lambda k: to_unit(images.pixels(order.batch(k)), 256)


def rates(work: Path, rounds: int = 3) -> dict[str, float]:
    """Images per second of each package's training, medians over rounds."""
    path = work / "rates.json"
    if not path.exists():
        taken: dict[str, list[float]] = {name: [] for name in PACKAGES}
        peers = {name: make(1000) for name, make in PEERS.items()}
        data = {name: batches(peer.batch) for name, peer in peers.items()}
        for number in range(rounds):
            taken["ddpm"].append(run_ours(work / "rates" / str(number), 150, 150))
            for name, peer in peers.items():
                first, count = number * 1000, 3000 // peer.batch
                for k in range(first, first + 5):
                    peer.step(data[name](k))
                start = time.perf_counter()
                for k in range(first, first + count):
                    peer.step(data[name](k))
                taken[name].append(count * peer.batch / (time.perf_counter() - start))
        write_json(path, {name: statistics.median(each) for name, each in taken.items()})
    return json.loads(path.read_text())


def steps_after(minutes: float, rate: float, batch: int) -> list[int]:
    """The number of steps after each fraction of the time in SHARES."""
    quarter = max(1, round(minutes * 60 * rate / batch * SHARES[0]))
    return [round(quarter * share / SHARES[0]) for share in SHARES]


def trained(name: str, minutes: float, rate: float, work: Path) -> list[Diffusion]:
    """The models with averaged weights after each fraction of the time in SHARES."""
    torch.manual_seed(SEED)
    if name == "ddpm":
        folder, at = work / "ddpm", steps_after(minutes, rate, 64)
        last = folder / "last.ckpt"
        if not (folder / f"step_{at[-1]:07d}.ckpt").exists():
            run_ours(folder, at[-1], at[0], *([f"ckpt={last}"] if last.exists() else []))
        return [loading.model(loading.read(folder / f"step_{step:07d}.ckpt")) for step in at]
    peer = PEERS[name](steps_after(minutes, rate, PEERS[name].batch)[-1])
    at = steps_after(minutes, rate, peer.batch)
    files = [work / f"{name}_{step}.pt" for step in at]
    if not files[-1].exists():
        data = batches(peer.batch)
        with Steps(name, at[-1]) as progress:
            for k in range(at[-1]):
                peer.step(data(k))
                progress()
                if k + 1 in at:
                    write_tensors(files[at.index(k + 1)], peer.weights())
    found = [PEERS[name](1) for _ in files]
    return [each.model(torch.load(file, weights_only=True)) for each, file in zip(found, files, strict=True)]


def quality(model: Diffusion, label: str, options: argparse.Namespace, judge: Any) -> dict[str, float]:
    """FID of the samples, and bits/dim of test images from the sampled bound with sigma_t^2 = beta_t."""
    network, reference, test = judge
    model.requires_grad_(False)
    model = Diffusion(model.network, model.process, model.parameterization, FixedLarge(), model.levels).eval()
    tiles: list[Tensor] = []
    with Steps(label, -(-options.n // 250) * options.evaluations) as steps:
        features = sample_features(
            speed.sampling(model, "auto"),
            DPMSolver(options.evaluations, stochastic=True),
            network,
            (1, 28, 28),
            options.n,
            SEED,
            250,
            on_step=steps,
            on_batch=lambda pixels, index: tiles.append(pixels),
        )
    save_png(grid(tiles[0][:64]), options.work / f"{label.replace(', ', '_')}.png")
    code = dataset_bound.sampled(model, test, options.nll_images, SEED, 250, 10)
    return {
        "fid": FID()(features, reference)["fid"],
        "bits_per_dim": float(bits_per_dim(code.total, code.dims).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--work", type=Path, required=True, help="folder of rates, weights and rows")
    parser.add_argument("--minutes", type=float, default=20, help="training time")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--n", type=int, default=5000, help="samples per row")
    parser.add_argument("--evaluations", type=int, default=15, help="network evaluations per sample")
    parser.add_argument("--nll-images", type=int, default=1000, help="test images for bits/dim")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    allocator.keep_memory()

    rate = rates(options.work)
    models = {name: trained(name, options.minutes, rate[name], options.work) for name in options.packages}
    source = FashionMNIST()
    train, test = source.load("train"), source.load("test")
    network = feature_network("classifier", train, test, len(source.classes), source.levels)
    judge = network, real_features(train, network, source.levels, progress=True), test
    floor = FID()(real_features(test, network, source.levels, n=options.n), judge[1])["fid"]

    path = options.work / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for k in reversed(range(len(SHARES))):
        for name in options.packages:
            minutes = options.minutes * SHARES[k]
            if any((row["package"], row["minutes"]) == (name, minutes) for row in rows):
                continue
            found = quality(models[name][k], f"{name}, {minutes:g} min", options, judge)
            rows.append({"package": name, "minutes": minutes} | found)
            write_json(path, rows)
            print(rows[-1], flush=True)
            write(options, rate, rows, floor)


def write(options: argparse.Namespace, rate: dict[str, float], rows: list[dict[str, Any]], floor: float) -> None:
    """Write the rows as JSON, as a table, and as a plot."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    about = {"n": options.n, "evaluations": options.evaluations, "nll_images": options.nll_images, "seed": SEED}
    about |= {"features": "classifier", "floor": floor, "machine": machine, "images_per_second": rate}
    write_json(options.out / "time_to_quality.json", about | {"rows": rows})
    times = sorted({row["minutes"] for row in rows})
    found = {(row["package"], row["minutes"]): row for row in rows}
    measured = {name: [each for each in times if (name, each) in found] for name in PACKAGES}
    measured = {name: each for name, each in measured.items() if each}
    lines = ["| package | images/s | " + " | ".join(f"{each:g} min" for each in times) + " |"]
    lines.append("|---|---|" + "---|" * len(times))
    for name in measured:
        cells = {each: "{fid:.2f} ({bits_per_dim:.2f})".format(**found[name, each]) for each in measured[name]}
        lines.append(f"| {name} | {rate[name]:.0f} | " + " | ".join(cells.get(each, "") for each in times) + " |")
    lines.append(
        f"\nFID (bits/dim) after so many minutes of training: {options.n} samples in {options.evaluations} steps, "
        f"classifier features, {options.nll_images} test images, seed {SEED}, {machine}. FID of as many real test "
        f"images is {floor:.2f}."
    )
    write_text(options.out / "time_to_quality.md", "\n".join(lines) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in measured:
        fids = [found[name, each]["fid"] for each in measured[name]]
        axes.plot(measured[name], fids, marker="o", label=name)
    axes.axhline(floor, color="grey", linestyle=":", label="real test images")
    axes.set(xlabel="minutes of training", ylabel="FID (classifier features)", yscale="log")
    axes.legend()
    plots.save(figure, options.out / "time_to_quality.png")


if __name__ == "__main__":
    main()
