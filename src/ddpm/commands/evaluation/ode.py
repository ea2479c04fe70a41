"""The likelihood of the probability-flow ODE, Song et al. 2021, section 4.3."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.commands.evaluation.base import Evaluation
from ddpm.commands.subject import Subject
from ddpm.data.scaling import to_unit
from ddpm.likelihood import probability_flow
from ddpm.metrics.base import Row
from ddpm.parallel.gathered import Gathered
from ddpm.support.bars import Steps

DIVERGENCES = ("hutchinson", "exact")


class ODE(Evaluation):
    """Solves the ODE for each batch of images."""

    rows = (Row("bits_per_dim", "bits/dim of the ODE", "standard_error"),)

    def prepare(self, subject: Subject) -> Callable[[Path], dict[str, Any]]:
        cfg, model = subject.cfg, subject.model
        options = cfg.ode
        if options.divergence not in DIVERGENCES:
            raise ValueError(f"ode.divergence must be {' or '.join(DIVERGENCES)}, got {options.divergence!r}")
        if not (0 < options.rtol < math.inf and 0 < options.atol < math.inf):
            raise ValueError(f"ode.rtol and ode.atol must be above 0, got {options.rtol} and {options.atol}")
        probability_flow.check(model.process)
        n = subject.count(options.n_images)

        def run(folder: Path) -> dict[str, Any]:
            shape, device = subject.shape, subject.device
            dims = math.prod(shape)
            gathered = Gathered(("bits", "evaluations")).to(device)
            for index in torch.split(torch.tensor(subject.share.of(n)), cfg.batch_size):
                uniform, signs = (
                    IndexedNoise(subject.seed, stream, index, shape, device)
                    for stream in (Stream.DEQUANTISATION, Stream.PROBE)
                )
                x_0 = to_unit(subject.split.pixels(index), model.levels).to(device)
                x = probability_flow.dequantise(x_0, uniform.uniform(0), model.levels)
                divergence = (
                    probability_flow.exact
                    if options.divergence == "exact"
                    else probability_flow.hutchinson(signs(0).sign())
                )
                given = model.given(subject.split.labels[index].to(device))
                with Steps(f"ODE, image {int(index[0]) + 1} of {n}", None, subject.leads) as steps:
                    found = probability_flow.log_density(given, x, divergence, options.rtol, options.atol, steps)
                bits = probability_flow.code_length(found.log_p, dims, model.levels)
                gathered.update({"bits": bits, "evaluations": torch.full(index.shape, float(found.evaluations))}, index)
            values = gathered.compute()
            each = values["bits"]
            return {
                "bits_per_dim": float(each.mean()),
                "standard_error": float(each.std()) / n**0.5 if n > 1 else None,
                "n": n,
                "unit": "bits/dim",
                "split": cfg.split,
                "given": subject.given,
                "levels": model.levels,
                "evaluations": float(values["evaluations"].mean()),
                "divergence": options.divergence,
                "dequantisation": "uniform over each grey level's bin",
                "density": "of x_1, the least noise that the network knows",
                "solver": f"scipy RK45, rtol {options.rtol:g}, atol {options.atol:g}",
                "dtype": "float32",
            }

        return run
