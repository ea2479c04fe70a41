"""What is evaluated."""

from dataclasses import dataclass
from typing import Any

from ddpm import build, cli
from ddpm.data.images import Images
from ddpm.data.source import Source, check_split
from ddpm.diffusion import Diffusion


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint, the images it is compared with, and the options.

    Attributes:
        cfg: an `EvaluateConfig`.
        config: of the training run, from the checkpoint.
        model: in evaluation mode, on its device.
        seed: of the noise.
        source: where the images come from.
        train: its training images.
        test: its test images.
    """

    cfg: Any
    config: dict[str, Any]
    model: Diffusion
    seed: int
    source: Source
    train: Images
    test: Images

    @property
    def split(self) -> Images:
        """The images whose likelihood is asked for."""
        return self.train if self.cfg.split == "train" else self.test

    def count(self, n: int | None) -> int:
        """How many images of the split n asks for; None asks for all."""
        return len(self.split) if n is None else min(n, len(self.split))


def subject(cfg: Any, opened: cli.Opened) -> Subject:
    """A checkpoint with its data."""
    check_split(cfg.split)
    config = opened.config
    if cfg.data_root is not None:
        config["data"]["root"] = cfg.data_root
    source = build.source(config)
    return Subject(cfg, config, opened.model, opened.seed, source, source.load("train"), source.load("test"))
