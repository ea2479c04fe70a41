"""The LightningDataModule.

Training is one Lightning epoch of max_steps * accumulate_grad_batches micro-batches; the loader starts at the
one that belongs to global_step. Pixels are sent as uint8, a quarter of the bytes, and scaled on the device.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddpm.data.batches import EvalSampler, TrainBatches, TrainSampler
from ddpm.data.images import Images, fingerprint
from ddpm.data.scaling import to_unit
from ddpm.data.source import Source, check_split
from ddpm.parallel import processes


class Batch(NamedTuple):
    """A batch, as the LightningModule receives it."""

    x_0: Tensor
    """Images in [-1, 1], float32, shape (B, C, H, W); uint8 grey levels until they are on the device."""
    label: Tensor
    """Classes, int64, shape (B,); zeros when the source has no classes."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    """Indices of the images in their split, int64, shape (B,), 0..N-1, mirrored or not."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Send batches from workers as bytes: torch would use /dev/shm, and hang when it is full."""
        return _from_arrays, tuple(each.numpy() for each in self)


def _from_arrays(*arrays: np.ndarray) -> Batch:
    return Batch(*map(torch.from_numpy, arrays))


class _Gather(Dataset[Batch | Exception]):
    """Whole batches by image index, where i + N is image i mirrored left to right.

    Unreadable files return the error as a value, because torch would wrap an error raised in a worker in its traceback.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, places: list[int]) -> Batch | Exception:
        try:
            return self._batch(torch.tensor(places))
        except (ValueError, OSError) as error:
            return error

    def _batch(self, places: Tensor) -> Batch:
        n = len(self.images)
        index = places % n
        pixels = self.images.pixels(index)
        mirrored = (places >= n).view(-1, 1, 1, 1)
        return Batch(torch.where(mirrored, pixels.flip(-1), pixels), self.images.labels[index], index)


class _Places(Sampler[list[int]]):
    """The batches of a sampler as lists: tensors would also reach worker processes through /dev/shm."""

    def __init__(self, sampler: Sampler[Tensor]) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.sampler)


class _Loader(DataLoader[Any]):
    """A loader that Lightning can resume within an epoch: its state is global_step, which Lightning stores."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def __iter__(self) -> Any:
        """Yield batches; raise the error if one could not be read."""
        try:
            batches = super().__iter__()
        except OSError as error:  # from the semaphores, which are in /dev/shm
            raise ValueError(
                f"cannot start num_workers={self.num_workers} data loading processes ({error.strerror}; "
                f"df /dev/shm shows the free space); choose fewer, or 0"
            ) from None
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch


class DataModule(lightning.LightningDataModule):
    """Data loaders for the two splits of a source.

    The Trainer needs use_distributed_sampler=False, max_epochs=-1 and check_val_every_n_epoch=None. Without a
    Trainer there is one process, and train_dataloader makes one pass over the data.

    Args:
        source: where the images come from.
        batch_size: images per micro-batch and process.
        seed: seed of the order and the flips in training.
        num_workers: data loading processes per loader; 0 loads in the main process.
        eval_batch_size: batch_size in evaluation; None uses batch_size.
    """

    train: Images
    test: Images
    digest: dict[str, Any]
    """Split -> fingerprint of its images, which a checkpoint stores to recognise other data."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for name, number in (("seed", seed), ("num_workers", num_workers)):
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.eval_batch_size = eval_batch_size or batch_size
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Fetch the data unless it is loaded; Lightning calls this on one process per machine."""
        if not self._is_set_up:
            self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load both splits, once; all processes must call it together."""
        if not self._is_set_up:
            self.train, self.test = self.source.load("train"), self.source.load("test")
            leads = processes.share().rank == 0
            digest = {"train": fingerprint(self.train), "test": fingerprint(self.test)} if leads else None
            self.digest = processes.agreed(digest)
            self._is_set_up = True

    def images(self, split: str) -> Images:
        """The images of "train" or "test", loaded on first use."""
        check_split(split)
        self.setup()
        return self.train if split == "train" else self.test

    def train_dataloader(self) -> DataLoader[Batch]:
        """The remaining micro-batches, from global_step to max_steps."""
        n = len(self.images("train"))
        batches = TrainBatches(n, self.batch_size, self.seed, self.source.flip, *self._rank_and_world())
        trainer = self.trainer
        if trainer is None:
            return self._loader(self.train, TrainSampler(batches, lambda: 0, batches.batches_per_pass))
        if trainer.max_steps < 0:
            raise ValueError(f"training is counted in steps: max_steps must be >= 0, got {trainer.max_steps}")
        _seek(trainer)
        stop = trainer.max_steps * trainer.accumulate_grad_batches
        return self._loader(self.train, TrainSampler(batches, partial(_first_batch, trainer), stop))

    def val_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the test split, in order; no image is repeated or left out."""
        n = len(self.images("test"))
        return self._loader(self.test, EvalSampler(n, self.eval_batch_size, *self._rank_and_world()))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Same as val_dataloader."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Same as val_dataloader."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale grey levels to [-1, 1], on the device, in training and evaluation."""
        return batch._replace(x_0=to_unit(batch.x_0, self.source.levels))

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, images: Images, sampler: Sampler[Tensor]) -> DataLoader[Batch]:
        return _Loader(
            _Gather(images),
            batch_size=None,  # the sampler yields whole batches
            sampler=_Places(sampler),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each loader draws from the global one
        )


def _first_batch(trainer: lightning.Trainer) -> int:
    """The micro-batch that training continues with."""
    return trainer.global_step * trainer.accumulate_grad_batches


def _seek(trainer: lightning.Trainer) -> None:
    """Make Lightning's batch counts agree with global_step when resuming.

    A checkpoint from the last batch of a run marks its epoch as finished, which is wrong for a longer run. One from the
    start of a batch counts that batch, which would shift validation by one.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    progress.is_last_batch = False
    for counts in (progress.total, progress.current):
        counts.ready = counts.started = counts.processed = counts.completed = _first_batch(trainer)
