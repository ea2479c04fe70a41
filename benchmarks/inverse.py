"""Compare the solvers of inverse problems with baselines: python benchmarks/inverse.py CKPT --n 100 --work FOLDER

Each row is a run of sample.py. Its folder is kept in --work and reused, so an interrupted benchmark continues. Writes
inverse.json and inverse.md into --out. The baselines come from scikit-image and bicubic interpolation.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.restoration import inpaint_biharmonic, unsupervised_wiener
from torch import Tensor

from ddpm.commands.tasks.inverse import measure
from ddpm.metrics.restoration import psnr, ssim
from ddpm.operator.base import Measurement
from ddpm.operator.gaussian_blur import GaussianBlur
from ddpm.operator.inpaint import Inpaint
from ddpm.operator.super_resolution import SuperResolution
from ddpm.support.files import write_json, write_text

ROOT = Path(__file__).parents[1]
NOISE = 0.05
PROBLEMS = {
    "inpainting, box 14x14": (["operator=inpaint", "operator.size=14"], Inpaint(size=14)),
    "super-resolution, 4x": (["operator=super_resolution", "operator.factor=4"], SuperResolution(4)),
    "Gaussian blur, 1.5 pixels": (["operator=gaussian_blur", "operator.width=1.5"], GaussianBlur(1.5)),
}
STOCHASTIC = ["sampler=dpm_solver", "sampler.stochastic=true"]
SOLVERS = {
    "mmps": [*STOCHASTIC, "sampler.steps=40"],
    "pigdm": [*STOCHASTIC, "sampler.steps=50"],
    "dps": ["sampler=ancestral", "sampler.steps=200"],
    "replacement": ["sampler=ancestral", "sampler.steps=50"],
}


def baseline(name: str, measured: Measurement) -> tuple[str, Tensor]:
    """The baseline's name, and its images in [-1, 1]."""
    y = measured.y
    if name.startswith("inpainting"):
        unknown = measured.operator.known(*y.shape[2:]).numpy() == 0
        filled = [inpaint_biharmonic(image[0].double().numpy(), unknown) for image in y]
        return "biharmonic (scikit-image)", torch.from_numpy(np.stack(filled))[:, None].float()
    if name.startswith("super"):
        return "bicubic", F.interpolate(y, scale_factor=4, mode="bicubic")
    kernel = measured.operator.kernel.numpy()
    sharp = [unsupervised_wiener(image[0].double().numpy(), kernel, clip=False, rng=0)[0] for image in y]
    return "Wiener (scikit-image)", torch.from_numpy(np.stack(sharp))[:, None].float()


def solved(ckpt: Path, options: list[str], folder: Path, n: int, draws: int) -> dict:
    """The scores of one run of sample.py."""
    if not list(folder.glob("samples_*/inverse.json")):
        command = [sys.executable, str(ROOT / "sample.py"), f"ckpt={ckpt}", "task=inverse", f"n={n}"]
        command += [f"noise={NOISE}", f"draws={draws}", "speed=auto", f"output_dir={folder}", *options]
        subprocess.run(command, check=True)
    (written,) = folder.glob("samples_*/inverse.json")
    return json.loads(written.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--n", type=int, default=100, help="test images")
    parser.add_argument("--draws", type=int, default=4, help="reconstructions per image")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()

    rows = []
    for name, (operator, built) in PROBLEMS.items():
        for solver, sampler in SOLVERS.items():
            folder = options.work / f"{operator[0].split('=')[1]}_{solver}"
            found = solved(options.ckpt, [*operator, f"solver={solver}", *sampler], folder, options.n, options.draws)
            scores = {key: None if (value := found[metric][of]) is None else float(value) for key, metric, of in KEYS}
            rows.append({"problem": name, "solver": solver, **scores})
        arrays = np.load(next(folder.glob("samples_*/inverse.npz")))
        x_0 = torch.from_numpy(arrays["x_0"]).float() / 127.5 - 1
        called, restored = baseline(name, measure(built, x_0, NOISE, found["seed"]))
        restored = restored.clamp(-1, 1)
        rows.append(
            {"problem": name, "solver": called}
            | {"psnr": float(psnr(restored, x_0).mean()), "ssim": float(ssim(restored, x_0).mean())}
        )
    write(options, rows, found["seed"])


KEYS = (
    ("psnr", "psnr", "mean"),
    ("psnr_error", "psnr", "mean_standard_error"),
    ("ssim", "ssim", "mean"),
    ("psnr_draw", "psnr", "draws"),
    ("ssim_draw", "ssim", "draws"),
)


def write(options: argparse.Namespace, rows: list[dict], seed: int) -> None:
    """Write the rows as JSON and as a table."""
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    about = {"n": options.n, "draws": options.draws, "noise": NOISE, "seed": seed, "machine": machine}
    write_json(options.out / "inverse.json", about | {"rows": rows})
    lines = [
        "| problem | solver | PSNR of the mean (dB) | of one draw | SSIM of the mean | of one draw |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["problem"], row["solver"], f"{row['psnr']:.2f}", "", f"{row['ssim']:.3f}", ""]
        if "psnr_draw" in row:
            cells[2] += "" if row["psnr_error"] is None else f" ± {row['psnr_error']:.2f}"
            cells[3], cells[5] = f"{row['psnr_draw']:.2f}", f"{row['ssim_draw']:.3f}"
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        f"\nThe first {options.n} test images, {options.draws} draws of each and their mean, noise {NOISE} on "
        f"images in [-1, 1], seed {seed}, {machine}; ± standard errors over images."
    )
    write_text(options.out / "inverse.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
