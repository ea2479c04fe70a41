"""FID against network evaluations for every sampler, from one checkpoint.

    python benchmarks/samplers.py runs/.../last.ckpt --n 500 --evaluations 10 25 50

Writes samplers.json, samplers.md and samplers.png into --out. Rows already in samplers.json are not computed
again, so an interrupted run continues, and more evaluations can be added later.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ddpm.commands import plots
from ddpm.metrics.base import Sizes
from ddpm.metrics.feature_network import feature_network
from ddpm.metrics.features import real_features, sample_features
from ddpm.metrics.fid import FID
from ddpm.sampler.ancestral import Ancestral
from ddpm.sampler.ddim import DDIM
from ddpm.sampler.dpm_solver import DPMSolver
from ddpm.sampler.euler import Euler
from ddpm.sampler.heun import Heun
from ddpm.sampler.langevin import Langevin
from ddpm.sampler.predictor_corrector import PredictorCorrector
from ddpm.sampler.reverse_sde import ReverseSDE
from ddpm.setup import build, loading
from ddpm.support.bars import Steps
from ddpm.support.files import write_json, write_text

SAMPLERS = {
    "ancestral": lambda steps: Ancestral(steps),
    "ddim": lambda steps: DDIM(steps),
    "ddim quadratic": lambda steps: DDIM(steps, spacing="quadratic"),
    "dpm_solver": lambda steps: DPMSolver(steps),
    "dpm_solver quadratic": lambda steps: DPMSolver(steps, spacing="quadratic"),
    "dpm_solver stochastic": lambda steps: DPMSolver(steps, stochastic=True),
    "heun": lambda steps: Heun(steps),
    "euler": lambda steps: Euler(steps),
    "reverse_sde": lambda steps: ReverseSDE(steps),
    "predictor_corrector": lambda steps: PredictorCorrector(steps),
    "langevin": lambda steps: Langevin(steps, inner=2),
}


def within(make, evaluations, T):
    """The sampler with the most steps that needs at most so many evaluations; None if there is none."""
    fitting = [steps for steps in range(1, T + 1) if make(steps).evaluations(steps) <= evaluations]
    return make(fitting[-1]) if fitting else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--n", type=int, default=500, help="samples per row")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()

    content = loading.read(options.ckpt)
    model, config = loading.model(content), content["ddpm_config"]
    source = build.source(config)
    train, test = source.load("train"), source.load("test")
    network = feature_network("classifier", train, test, len(source.classes), model.levels)
    reference = real_features(train, network, model.levels, progress=True)
    shape = tuple(config["image"]["shape"])

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "samplers.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["sampler"], row["budget"], row["n"]) for row in rows}
    for budget in options.evaluations:
        for name in options.only:
            sampler = within(SAMPLERS[name], budget, model.T)
            if sampler is None or (name, budget, options.n) in done:
                continue
            start = time.perf_counter()
            total = -(-options.n // options.batch_size) * sampler.steps
            with Steps(f"{name}, {budget}", total) as steps:
                samples = sample_features(
                    model, sampler, network, shape, options.n, config["seed"], options.batch_size, on_step=steps
                )
            seconds = time.perf_counter() - start
            fid = FID()(samples, reference)["fid"]
            row = {
                "sampler": name,
                "budget": budget,
                "steps": sampler.steps,
                "evaluations": sampler.evaluations(sampler.steps),
                "spacing": sampler.spacing,
                "fid": fid,
                "seconds": seconds,
                "n": options.n,
            }
            rows.append(row)
            print(f"{name}, {row['evaluations']} evaluations: FID {fid:.3f}, {seconds:.0f} s", flush=True)
            if caution := FID().caution(Sizes(options.n, len(train), network.dim)):
                print(f"warning: {caution}", flush=True)
            write(options, rows, config["seed"])


def write(options, rows, seed):
    """Write the rows as JSON, as a table, and as a plot."""
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    about = {"n": options.n, "seed": seed, "features": "classifier", "machine": machine}
    write_json(options.out / "samplers.json", about | {"rows": rows})
    budgets = sorted({row["budget"] for row in rows})
    found = {(row["sampler"], row["budget"]): row for row in rows if row["n"] == options.n}
    lines = [
        "| sampler | spacing | " + " | ".join(f"{budget} evaluations" for budget in budgets) + " |",
        "|---|---|" + "---|" * len(budgets),
    ]
    for name in SAMPLERS:
        cells = [found.get((name, budget)) for budget in budgets]
        if any(cells):
            spacing = next(cell["spacing"] for cell in cells if cell)
            texts = [f"{cell['fid']:.2f} ({cell['seconds']:.0f} s)" if cell else "" for cell in cells]
            lines.append(f"| {name} | {spacing} | " + " | ".join(texts) + " |")
    lines.append(f"\nFID (wall time): N = {options.n}, seed {seed}, classifier features, {machine}.")
    write_text(options.out / "samplers.md", "\n".join(lines) + "\n")

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(SAMPLERS, "os^vD<>PX*h", strict=True):
        own = sorted((row for (key, _), row in found.items() if key == name), key=lambda row: row["evaluations"])
        if own:
            axes.loglog([row["evaluations"] for row in own], [row["fid"] for row in own], f"{marker}-", label=name)
    axes.set(xlabel="network evaluations", ylabel="FID (classifier features)")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.grid(color="0.9")
    figure.legend(loc="outside right center", fontsize=8)
    plots.save(figure, options.out / "samplers.png")


if __name__ == "__main__":
    main()
