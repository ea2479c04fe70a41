"""Encode real images to latents with the probability-flow ODE, and decode them."""

from collections.abc import Callable
from pathlib import Path

import torch

from ddpm.commands import plots
from ddpm.commands.subject import Subject
from ddpm.likelihood import probability_flow
from ddpm.support.bars import Steps
from ddpm.support.files import write_json, write_npz


def prepare(subject: Subject) -> Callable[[Path], None]:
    """Load the images; the returned function writes latents, reconstructions and their error."""
    probability_flow.check(subject.model.process)
    x_0 = subject.real(subject.cfg.images)

    def run(folder: Path) -> None:
        with Steps("ODE", None) as steps:
            latent = probability_flow.carry(subject.model, x_0, on_step=steps)
            back = probability_flow.carry(subject.model, latent, backwards=True, on_step=steps)
        rmse = 127.5 * float(((back.clamp(-1, 1) - x_0) ** 2).mean().sqrt())
        found = {
            "images": list(subject.cfg.images),
            "split": subject.cfg.split,
            "rmse": rmse,
            "latent_mean": float(latent.mean()),
            "latent_std": float(latent.std()),
        }
        write_json(folder / "encode.json", found)
        write_npz(folder / "latents.npz", {"latents": latent.cpu()})
        tiles = torch.stack([subject.grey(each) for each in (x_0, latent, back)])
        labels = ["$x_0$", "$x_T$", "decoded"]
        title = f"encoded and decoded by the ODE, RMSE {rmse:.2f} of 255"
        figure = plots.tiles(tiles, [str(i) for i in subject.cfg.images], labels, title)
        plots.save(figure, folder / "encode.png", subject.text)

    return run
