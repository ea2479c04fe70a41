"""The LightningModule that trains a Diffusion."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from ddpm.chain.noise import IndexedNoise, Stream, seed_from
from ddpm.conditioning.base import Conditioning
from ddpm.conditioning.none import Unconditional
from ddpm.lit.datamodule import Batch
from ddpm.lit.loggers import run_id
from ddpm.lit.quartiles import NEVER, QuartileLoss
from ddpm.loss.base import Loss
from ddpm.model.diffusion import Diffusion
from ddpm.model.ema import EMA
from ddpm.parallel.processes import least, summed
from ddpm.setup.run_folder import LAST
from ddpm.time_sampler.base import TimeSampler


class DDPM(lightning.LightningModule):
    """Trains a Diffusion and averages its weights.

    The noise and dropout of a step depend only on (seed, rank, step), so a resumed run repeats an uninterrupted one and
    ranks share no noise. The averaged weights are kept next to the trained ones, under `ema.`, and never swapped with
    them.

    Args:
        diffusion: the model to train.
        loss: the loss to minimise.
        time_sampler: which times to train on.
        optimizer: parameters -> optimizer.
        ema: the average of `diffusion.network`.
        warmup_steps: steps of linear learning-rate warm-up.
        seed: seed of the noise.
        conditioning: which labels to train with.
        config: a plain dict that rebuilds the model, stored in checkpoints.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        loss: Loss,
        time_sampler: TimeSampler,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        ema: EMA,
        warmup_steps: int = 0,
        seed: int = 0,
        conditioning: Conditioning | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}; Ho et al. use 5000")
        self.diffusion = diffusion
        self.loss = loss
        self.time_sampler = time_sampler
        self.optimizer = optimizer
        self.ema = ema
        self.warmup_steps = warmup_steps
        self.seed = seed
        self.conditioning = conditioning or Unconditional()
        self.config = config
        self.quartiles = QuartileLoss(diffusion.T)
        self.validation_loss = MeanMetric()
        self.results: dict[str, float] = {}
        self.unreliable: list[str] = []  # names of results from too few images
        self.warnings: list[str] = []  # what to say of the results
        self._step: dict[str, Tensor | float] = {}

    @property
    def averaged(self) -> Diffusion:
        """The model with the averaged weights."""
        return self.diffusion.with_network(self.ema.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted mean loss of a batch."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        own, shared = self._generators(self.global_step, part)
        t, weight = self.time_sampler(len(batch.x_0), shared, self.global_rank, self.trainer.world_size)
        noise = torch.randn(batch.x_0.shape, generator=own, device=self.device, dtype=batch.x_0.dtype)
        label = self.conditioning.labels(batch.label, self.diffusion.classes, own)
        losses = self.losses(self.diffusion.given(label), batch.x_0, t, noise)
        if self.time_sampler.learns:
            self.time_sampler.update(*(values.flatten() for values in self.all_gather((t, losses.detach()))))
        self.quartiles.update(t, self.loss.logged(losses, self.diffusion.T), weight, self.global_step)
        return (weight * losses).mean()

    def losses(self, diffusion: Diffusion, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Unweighted loss of each image, shape (B,).

        Args:
            diffusion: the model.
            x_0: images in [-1, 1], shape (B, C, H, W).
            t: times in 1..T, shape (B,).
            noise: standard normal, shape (B, C, H, W).
        """
        x_t = diffusion.process.diffuse(x_0, t, noise)
        return self.loss(diffusion.predict(x_t, t), x_0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of the averaged weights; an image's time depends only on its index, its noise only on (seed, index)."""
        noise = IndexedNoise(self.seed, Stream.VALIDATION, batch.index, batch.x_0.shape[1:], self.device)
        # A golden-ratio sequence covers 1..T evenly, for any number of images.
        fraction = (batch.index.double() * 0.6180339887498949) % 1
        t = (fraction * self.diffusion.T).long() + 1
        losses = self.losses(self.averaged.given(batch.label), batch.x_0, t, noise(0))
        self.validation_loss.update(self.loss.logged(losses, self.diffusion.T))
        self.log("val/loss", self.validation_loss, prog_bar=True)
        self.log("step", float(self.global_step), batch_size=len(losses))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Correct the step count that Lightning logs by, which is shifted when resuming at a validation step."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the mean loss since it was last logged, over all processes, also per quarter of the time range."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        accumulated = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if accumulated and self.global_step % every == 0:
            self.check_finite()
            self.log("step", float(self.global_step))  # Lightning would count from 0
            for name, mean in self.quartiles.compute().items():
                self.log(f"train/{name}", mean, prog_bar=name == "loss")
            self.quartiles.reset()
            self.log_dict({f"train/{name}": value for name, value in self._step.items()})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, and record their norm before clipping."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        self._step["gradient_norm"] = norm
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then update the averaged weights."""
        self._step["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.diffusion.network, updates=self.global_step)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """The optimizer, with linear learning-rate warm-up."""
        optimizer = self.optimizer(self.diffusion.network.parameters())
        # A fused optimizer would unscale gradients itself, after clipping, which Lightning rejects.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        warm_up = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    @property
    def unlogged(self) -> dict[str, Tensor]:
        """Sums of the losses that have not been logged yet."""
        return {"total": self.quartiles.total, "weight": self.quartiles.weight}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the configuration, the optimizer class, the W&B run, and all processes' losses not yet logged."""
        checkpoint["ddpm_config"] = self.config
        if self.config is not None:
            digest = {"digest": self.trainer.datamodule.digest}  # type: ignore[attr-defined]
            checkpoint["ddpm_config"] = self.config | {"image": self.config["image"] | digest}
        checkpoint["unlogged"] = {name: summed(losses) for name, losses in self.unlogged.items()}
        checkpoint["optimizer"] = class_name(self.trainer.optimizers[0])
        checkpoint["wandb_id"] = run_id(self.trainer.loggers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the optimizer's state, with the configured options and learning-rate schedule.

        The state of a weight gets the weight's memory layout, which a fused step requires. Only the first process
        restores the losses not yet logged, because the number of processes may have changed.
        """
        weights, step = list(self.diffusion.network.parameters()), checkpoint["global_step"]
        configured = self.configure_optimizers()
        optimizer, warm_up = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        rates = [rate * factor(step) for rate, factor in zip(warm_up.base_lrs, warm_up.lr_lambdas, strict=True)]
        checkpoint["lr_schedulers"] = [
            warm_up.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        ]
        (learned,) = checkpoint["optimizer_states"]
        learned["param_groups"] = optimizer.state_dict()["param_groups"]
        for group, rate in zip(learned["param_groups"], rates, strict=True):
            group["lr"] = rate
        for index, state in learned["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    fits = value.shape == weights[index].shape
                    state[name] = torch.empty_like(weights[index] if fits else value).copy_(value)
        if self.global_rank == 0:
            for name, losses in self.unlogged.items():
                losses.copy_(checkpoint["unlogged"][name])

    def check_finite(self) -> None:
        """Check that all losses and weights are finite.

        Raises:
            ValueError: naming the first step and quarter of the time range, and the last good checkpoint.
        """
        first = least(self.quartiles.non_finite).tolist()
        step, T = min(first), self.diffusion.T
        remedy = "lower optimizer.lr or trainer.gradient_clip_val, or raise warmup_steps"
        last = Path(self.trainer.default_root_dir) / LAST
        if last.exists():
            remedy = f"the last good checkpoint is {os.path.relpath(last)}; {remedy}"
        if step < NEVER:
            quarter = first.index(step)
            low, high = (-(-T * q // 4) for q in (quarter, quarter + 1))  # (t - 1) * 4 // T == quarter
            raise ValueError(
                f"the loss has not been finite since step {step + 1}, first in quartile {quarter + 1} of t "
                f"({low + 1}..{high}); {remedy}"
            )
        weights = list(self.diffusion.network.parameters())
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            raise ValueError(f"weights are not finite after step {self.global_step}; {remedy}")

    def _generators(self, step: int, part: int) -> tuple[torch.Generator, torch.Generator]:
        """Generators of a micro-batch, for this rank and shared by all ranks; also seeds this rank's dropout."""

        def key(stream: Stream, rank: int) -> int:
            return seed_from(self.seed, stream, step, part, rank)

        torch.manual_seed(key(Stream.DROPOUT, self.global_rank + 1))
        own = torch.Generator(self.device).manual_seed(key(Stream.TRAINING, self.global_rank + 1))
        shared = torch.Generator(self.device).manual_seed(key(Stream.TRAINING, 0))
        return own, shared


def class_name(part: object) -> str:
    """The module and qualified name of an object's class."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
