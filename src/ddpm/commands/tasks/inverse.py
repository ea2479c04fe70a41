"""Reconstruct images from measurements with the unconditional model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.commands import plots
from ddpm.commands.subject import Subject
from ddpm.data.decode import Decode
from ddpm.data.scaling import to_unit
from ddpm.metrics import restoration
from ddpm.operator.base import Measurement, Operator
from ddpm.parallel.gathered import Gathered
from ddpm.setup import build
from ddpm.solver.base import Solver
from ddpm.support.bars import Steps
from ddpm.support.files import write_json, write_npz

MOST_ROWS = 16


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Check the options and measure the images; the returned function reconstructs and scores them."""
    cfg = subject.cfg
    for group in ("operator", "solver"):
        if not cfg[group]:
            raise ValueError(f"task=inverse needs {group}=...; python sample.py --help lists the choices")
    for name, value, least in (("draws", cfg.draws, 1), ("noise", cfg.noise, 0)):
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    operator: Operator = build.instance("operator", cfg.operator)
    solver: Solver = build.instance("solver", cfg.solver)
    operator.check(subject.shape)
    solver.check(operator, subject.model.process)
    restoration.check(subject.shape, cfg.lpips)
    x_0 = _images(subject)
    share, draws, sampler = subject.share, cfg.draws, subject.sampler
    if len(x_0) * draws < share.world:
        raise ValueError(
            f"{len(x_0) * draws} reconstructions are too few for {share.world} processes; use fewer devices"
        )
    measured = measure(operator, x_0, cfg.noise, subject.seed)

    def run(folder: Path) -> None:
        mine = torch.tensor(share.of(len(x_0) * draws))  # draw k of image i is number i * draws + k
        gathered = Gathered(("x",)).to(subject.device)
        batches = math.ceil(len(mine) / cfg.batch_size)
        with Steps(build.option(solver), batches * sampler.chain(subject.model).T, subject.leads) as steps:
            for index in torch.split(mine, cfg.batch_size):
                part = Measurement(operator, measured.y[index // draws], measured.sigma)
                noise = subject.noise(index.tolist())
                gathered.update({"x": solver.sample(subject.sampled, sampler, part, noise, steps)}, index)
        x = gathered.compute()["x"]
        if subject.leads:
            _write(subject, folder, x_0, measured, x.view(-1, draws, *subject.shape))

    return run


def measure(operator: Operator, x_0: Tensor, sigma: float, seed: int) -> Measurement:
    """A(x_0) + sigma n, where the noise of image i depends only on (seed, i)."""
    y = operator(x_0)
    n = IndexedNoise(seed, Stream.MEASUREMENT, range(len(y)), y.shape[1:], y.device)(0)
    return Measurement(operator, y + sigma * n.to(y.dtype), sigma)


def _images(subject: Subject) -> Tensor:
    """The picture `cfg.input`, or the first images of the split, in [-1, 1], shape (N, C, H, W)."""
    cfg = subject.cfg
    if cfg.input is None:
        return subject.real(range(subject.count(cfg.n)))
    channels, side, _ = subject.shape
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, but the model's images have {channels}; leave input out")
    pixels = Decode(side, channels)(Path(cfg.input))[None]
    grey = (pixels.double() * (subject.model.levels - 1) / 255).round().to(torch.uint8)
    return to_unit(grey, subject.model.levels).to(subject.device)


def _write(subject: Subject, folder: Path, x_0: Tensor, measured: Measurement, x: Tensor) -> None:
    """Write pictures, arrays and scores of the draws x, shape (N, draws, C, H, W)."""
    cfg = subject.cfg
    x = x.clamp(-1, 1)
    mean, draws = x.mean(1), x.shape[1]
    found: dict[str, Any] = {"n": len(x), "draws": draws, "noise": measured.sigma, "seed": subject.seed}
    found |= {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("operator", "solver")}
    found |= {"input": cfg.input or cfg.split, "sampler": subject.sampler_config}
    found |= {"steps": subject.sampler.chain(subject.model).T, "samples_dtype": subject.sampled_dtype}
    metrics = {"psnr": restoration.psnr, "ssim": restoration.ssim} | ({"lpips": restoration.lpips} if cfg.lpips else {})
    for name, metric in metrics.items():
        of_draws = torch.stack([metric(x[:, k], x_0) for k in range(draws)], 1)
        of_mean = metric(mean, x_0)
        spread = float(of_mean.std()) if len(x) > 1 else math.nan  # NaN too where a PSNR is infinite
        found[name] = {
            "draws": float(of_draws.mean()),
            "mean": float(of_mean.mean()),
            "mean_standard_error": spread / len(x) ** 0.5 if math.isfinite(spread) else None,
            "of_each_mean": of_mean.tolist(),
        }
    residual = measured.y - measured.operator(mean)
    found["residual"] = float(residual.square().mean().sqrt())
    write_json(folder / "inverse.json", found)
    write_npz(folder / "inverse.npz", {"x_0": subject.grey(x_0), "draws": subject.grey(x)})

    rows = slice(min(len(x), MOST_ROWS))
    deviation = 2 * x[rows].std(1, correction=0) - 1  # black where all draws agree
    shown = [x_0[rows], measured.operator.picture(measured.y[rows], subject.shape), *x[rows].unbind(1), mean[rows]]
    tiles = torch.stack([subject.grey(each) for each in (*shown, deviation)], 1)
    columns = ["$x_0$", "y", *[f"draw {k + 1}" for k in range(draws)], "mean", "deviation"]
    title = f"{build.option(measured.operator)}, {_name(cfg.solver)}: PSNR of the mean {found['psnr']['mean']:.2f} dB"
    plots.save(plots.tiles(tiles, columns, None, title), folder / "inverse.png", subject.text)
    print(
        f"PSNR {found['psnr']['mean']:.2f} dB (the mean of {draws} draws), {found['psnr']['draws']:.2f} dB (one draw); "
        f"SSIM {found['ssim']['mean']:.3f}, {found['ssim']['draws']:.3f}; N = {len(x)}"
    )


def _name(node: Any) -> str:
    return str(node["_target_"]).rsplit(".", 2)[-2]
