"""Real images to their latents by the probability-flow ODE, and back."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ddpm import ode, plots
from ddpm.progress import Steps
from ddpm.subject import Subject


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Find the images; what is returned writes latents, reconstructions, and how far these are off."""
    ode.check(subject.model.process)
    x_0 = subject.real(subject.cfg.images)

    def run(folder: Path) -> None:
        with Steps("ODE", None) as steps:
            latent = ode.carry(subject.model, x_0, on_step=steps)
            back = ode.carry(subject.model, latent, backwards=True, on_step=steps)
        rmse = 127.5 * float(((back.clamp(-1, 1) - x_0) ** 2).mean().sqrt())
        found = {
            "images": list(subject.cfg.images),
            "split": subject.cfg.split,
            "rmse": rmse,
            "latent_mean": float(latent.mean()),
            "latent_std": float(latent.std()),
        }
        (folder / "encode.json").write_text(json.dumps(found, indent=2) + "\n")
        np.savez_compressed(folder / "latents.npz", latents=latent.cpu().numpy())
        tiles = torch.stack([subject.grey(each) for each in (x_0, latent, back)])
        labels = ["$x_0$", "$x_T$", "decoded"]
        title = f"encoded and decoded by the ODE, RMSE {rmse:.2f} of 255"
        plots.save(plots.tiles(tiles, [str(i) for i in subject.cfg.images], labels, title), folder / "encode.png")

    return run
