"""What evaluate.py and sample.py work on: a checkpoint, its data and the options."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.data.images import Images, fingerprint, not_compared, same
from ddpm.data.scaling import as_uint8, to_pixels, to_unit
from ddpm.data.source import Source, check_split
from ddpm.model.conditional import Classes, Guidance
from ddpm.model.diffusion import Diffusion
from ddpm.parallel import processes
from ddpm.parallel.share import Share
from ddpm.sampler.base import Sampler
from ddpm.setup import build, loading, speed
from ddpm.support.text import numbered

WITH_CLASSES = ("grid", "progressive")
"""Tasks that take labels; the others use a conditional model as an unconditional one."""
IN_PICTURES = ("sha256", "step", "weights", "task", "seed", "sampler", "labels", "guidance", "guidance_interval")


@dataclass(frozen=True, eq=False)
class Subject:
    """An opened checkpoint with its sampler and its data, which is loaded on first use.

    Attributes:
        cfg: an `EvaluateConfig` or a `SampleConfig`.
        config: configuration of the training run, from the checkpoint.
        model: in evaluation mode, on its device.
        seed: seed of the noise.
        step: optimizer steps that the model was trained for.
        sha256: hash of the checkpoint file.
        share: this process's share of the work.
        of_training: split -> whether its images are those of the training run, None if unknown; only loaded splits,
            on the leader.
    """

    cfg: Any
    config: dict[str, Any]
    model: Diffusion
    seed: int
    step: int
    sha256: str
    share: Share
    of_training: dict[str, bool | None] = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        """Whether this process writes shared files and shows progress."""
        return self.share.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.process.times.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image, (C, H, W)."""
        channels, height, width = self.config["image"]["shape"]
        return channels, height, width

    @property
    def origin(self) -> dict[str, Any]:
        """The checkpoint, weights and seed behind the results."""
        return {
            "checkpoint": os.path.abspath(self.cfg.ckpt),
            "sha256": self.sha256,
            "step": self.step,
            "weights": self.cfg.weights,
            "seed": self.seed,
        }

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """How the results of sample.py were made: `origin` and the options."""
        options = OmegaConf.to_container(self.cfg, resolve=True)
        assert isinstance(options, dict)
        left_out = {"ckpt", "output_dir", "trusted"}
        return self.origin | {
            **{str(name): value for name, value in options.items() if name not in left_out},
            "seed": self.seed,
            "sampler": self.sampler_config,
            "labels": self.labels.tolist() if self.model.classes and self.cfg.task in WITH_CLASSES else None,
        }

    @cached_property
    def text(self) -> dict[str, str]:
        """A short form of `made_by` for pictures, which may be shared: no path of this machine."""
        named = {name: self.made_by[name] for name in IN_PICTURES}
        return {"ddpm": json.dumps({"checkpoint": os.path.basename(self.cfg.ckpt)} | named)}

    @cached_property
    def sampler_config(self) -> Any:
        """Configuration of the requested sampler, completed from the training run's."""
        asked: Any = OmegaConf.to_container(self.cfg.sampler, resolve=True)
        return build.instead(asked, self.config["sampler"])

    @cached_property
    def sampler(self) -> Sampler:
        """The configured sampler, checked against the model's chain."""
        return build.sampler(self.sampler_config, self.model.process)

    @cached_property
    def sampled(self) -> Diffusion:
        """The model for sampling, as fast as `cfg.speed` allows."""
        sampled = speed.sampling(self.model, self.cfg.speed)
        if self.cfg.compile:
            sampled.network.compile()
        return sampled

    @property
    def sampled_dtype(self) -> str:
        """The data type in which the network computes during sampling."""
        return "bfloat16" if isinstance(self.sampled.network, speed.BFloat16) else "float32"

    @property
    def given(self) -> str | None:
        """What the likelihood of an image is conditional on."""
        return "its class" if self.model.classes else None

    @property
    def labels(self) -> Tensor:
        """The classes to sample in turn: the requested ones, or all, int64, shape (L,)."""
        asked, known, names = self.cfg.labels, self.model.classes, self.config["image"].get("class_names", [])
        if asked is not None and not known:
            raise ValueError(
                f"labels={list(asked)} need a conditional model, but {self.cfg.ckpt} holds an unconditional one; train "
                f"one with conditioning=class"
            )
        if asked is None:
            return torch.arange(known or 1)
        found = [names.index(label) if label in names else label for label in asked]
        wrong = [label for label in found if type(label) is not int or not 0 <= label < known]
        if wrong or not found:
            called = numbered(names) if names else "the checkpoint has no class names"
            raise ValueError(
                f"labels must be in 0..{known - 1}, the classes of the model ({called}), got {wrong or 'none'}"
            )
        return torch.tensor(found)

    def classes(self, labels: Tensor) -> Classes:
        """The classes `labels`, to sample in turn with the requested guidance."""
        interval = self.cfg.guidance_interval
        return Classes(labels, Guidance(self.cfg.guidance, None if interval is None else tuple(interval)))

    @cached_property
    def source(self) -> Source:
        """The training run's source of images, or the same source at `cfg.data_root` if that is given.

        Data is downloaded only to `cfg.data_root`: a checkpoint does not decide where files are written.
        """
        config = self.config["data"]
        if self.cfg.data_root is not None:
            config = config | {"root": self.cfg.data_root}
        source = build.source({"data": config})
        if self.cfg.data_root is not None:
            build.fetch(source)
        if (source.shape, source.levels) != (self.shape, self.model.levels):
            raise ValueError(
                f"images are {source.shape} with {source.levels} grey levels, but the checkpoint's model expects "
                f"{self.shape} with {self.model.levels}; use data like the training data"
            )
        build.check_classes(source, self.config["image"])
        if self.leads:
            for note in source.notes:
                print(f"data: {note}")
        return source

    @cached_property
    def train(self) -> Images:
        """The training images."""
        return self._loaded("train")

    @cached_property
    def test(self) -> Images:
        """The test images."""
        return self._loaded("test")

    def _loaded(self, split: str) -> Images:
        images = self.source.load(split)
        if self.leads:
            kept = self.config["image"].get("digest", {}).get(split)
            self.of_training[split] = alike = same(kept, fingerprint(images))
            if alike is None:
                print(f"data: {not_compared(split)}")
            else:
                print(f"data: the {split} images are {'' if alike else 'NOT '}those of the training run")
        return images

    @property
    def split(self) -> Images:
        """The images of `cfg.split`."""
        return self.train if self.cfg.split == "train" else self.test

    def count(self, n: int | None) -> int:
        """The number of images to use: n, at most the whole split; None uses all."""
        found = len(self.split) if n is None else min(n, len(self.split))
        if found < self.share.world:
            raise ValueError(f"{found} images are too few for {self.share.world} processes; use fewer devices")
        return found

    def noise(self, indices: Sequence[int]) -> IndexedNoise:
        """The noise of the samples with these indices."""
        return IndexedNoise(self.seed, Stream.SAMPLES, indices, self.shape, self.device)

    def real(self, indices: Sequence[int]) -> Tensor:
        """Images of the split in [-1, 1], on the model's device, shape (B, C, H, W)."""
        wrong = [i for i in indices if not 0 <= i < len(self.split)]
        if wrong or not indices:
            raise ValueError(
                f"images must be in 0..{len(self.split) - 1}, of the {self.cfg.split} split, got {wrong or 'none'}"
            )
        return to_unit(self.split.pixels(list(indices)), self.model.levels).to(self.device)

    def grey(self, x: Tensor) -> Tensor:
        """Images x, roughly in [-1, 1], as uint8 in 0..255 on the CPU."""
        return as_uint8(to_pixels(x, self.model.levels), self.model.levels).cpu()


def subject(cfg: Any) -> Subject:
    """Open the checkpoint `cfg.ckpt` with the requested weights, device and seed."""
    check_split(cfg.split)
    speed.check(cfg.speed)
    if cfg.seed is not None and cfg.seed < 0:
        raise ValueError(f"seed must be at least 0, got {cfg.seed}")
    content = loading.read_together(cfg.ckpt, cfg.trusted)
    model = loading.model(content, cfg.weights).to(device(cfg.device))
    if not model.classes and (cfg.guidance != 0 or cfg.guidance_interval is not None):
        raise ValueError(
            f"guidance={cfg.guidance:g} needs a conditional model, but {cfg.ckpt} holds an unconditional one; train "
            f"one with conditioning=class"
        )
    Guidance(cfg.guidance, cfg.guidance_interval)
    speed.arrange(model.network, cfg.speed, model.process.times.device)
    config = content["ddpm_config"]
    seed = config["seed"] if cfg.seed is None else cfg.seed
    return Subject(cfg, config, model, seed, content["global_step"], content["sha256"], processes.share())


def device(name: str) -> torch.device:
    """The device called `name`, this process's own if there are several; `auto` is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} is not available here; use device=cpu, device=cuda or device=auto") from error
