"""Scores of a model's samples, for training and evaluation alike."""

import math
from collections.abc import Callable, Mapping, Set
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddpm.data.images import Images
from ddpm.metrics.base import Metric, Row, Sizes
from ddpm.metrics.by_class import accuracy, fid_by_class
from ddpm.metrics.feature_network import FeatureNetwork, shared_network
from ddpm.metrics.features import Extractor, Pixels, Together, real_features, sample_features
from ddpm.metrics.fid import FID
from ddpm.metrics.scores import check_sizes, rows, scores, unreliable
from ddpm.model.conditional import Classes, in_proportion
from ddpm.model.diffusion import Diffusion
from ddpm.parallel.share import Share
from ddpm.sampler.base import Sampler
from ddpm.support.bars import Steps


class Judge:
    """Draws samples and computes metrics of them, shared out over the processes.

    Args:
        metrics: by name.
        train: real images that the samples are compared with.
        test: real images whose distance from `train` is the floor.
        classes: number of classes of these images.
        levels: number of grey levels.
        n: number of samples, of all processes together.
        share: of this process; the first shows progress.
        device: where to compute.
        features: `inception` or `classifier`, for metrics that need a feature network.
        inception_weights: a file of Inception weights; None for torch-fidelity's cache or download.
        features_dtype: of `feature_network.DTYPES`.
        by_class: whether to score how well samples match their classes, too: `accuracy` with the classifier's features,
            `fid_by_class` and its mean `fid_class_mean` if FID is computed.
        against_test: whether to compare the samples with the test images, too: values named `fid_test` and so on.
        also: what to look at besides what the metrics need.

    Attributes:
        network: the feature network; None if no metric needs one.
        labels: classes for the samples of a conditional model, in the proportions of `train`, int64, shape (n,).

    Raises:
        ValueError: the options do not fit the data, or a feature network is missing.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        train: Images,
        test: Images,
        classes: int,
        levels: int,
        n: int,
        share: Share,
        device: torch.device,
        features: str,
        inception_weights: str | None = None,
        features_dtype: str = "float32",
        by_class: bool = False,
        against_test: bool = False,
        also: Set[str] = frozenset(),
    ) -> None:
        self.metrics = metrics
        self.by_class = by_class
        self.against_test = against_test
        self.classes = classes
        self.train, self.test = train, test
        self.levels = levels
        self.n = n
        self.share = share
        self.device = device
        self.leads = share.rank == 0
        if n < share.world:
            raise ValueError(f"n_samples must be at least {share.world}, one for each process, got {n}")
        needs = {need for metric in metrics.values() for need in metric.needs} | also
        self.network: FeatureNetwork | None = None
        extractors: list[Extractor] = [Pixels()] if "pixels" in needs else []
        if needs & {*FeatureNetwork.values}:
            self.network = shared_network(features, train, test, classes, levels, inception_weights, features_dtype)
            extractors.append(self.network)
            if self.network.accuracy is not None and self.leads:
                print(f"features=classifier: test accuracy {self.network.accuracy:.1%}, network {self.network.digest}")
        self.extractor = Together(extractors)
        check_sizes(metrics, self._sizes(n))
        check_sizes(self._distances, self._sizes(self._floor_n))
        if against_test:
            check_sizes(metrics, self._sizes(n, len(test)))
        self.labels = Classes(in_proportion(train.labels)).of(range(n))

    @cached_property
    def reference(self) -> dict[str, Tensor] | None:
        """What the metrics look at of the training images; None if no metric compares with them."""
        return self.real(self.train) if self._comparing else None

    @cached_property
    def _held_out(self) -> dict[str, Tensor]:
        """What the metrics look at of the test images: of all, or of those that the floor needs."""
        return self.real(self.test, None if self.against_test else self._floor_n)

    @cached_property
    def floor(self) -> dict[str, float]:
        """Each distance for as many real test images, as of a perfect model, with their number."""
        distances = self._distances
        if not distances:
            return {}
        n = self._floor_n
        found = scores(distances, {need: value[:n] for need, value in self._held_out.items()}, self.reference)
        names = [f"{metric.distance}" for metric in distances.values()]
        return {f"{name}_floor": found[name] for name in names} | {f"{name}_floor_n": n for name in names}

    @cached_property
    def unreliable(self) -> dict[str, str]:
        """Names of the values that come from too few images, each with a sentence that says why."""
        distances = self._distances.values()
        found = unreliable(self.metrics.values(), self._sizes(self.n))
        of_floor = unreliable(distances, self._sizes(self._floor_n))
        found |= {
            f"{metric.distance}_floor": f"the floor, {of_floor[metric.distance]}"
            for metric in distances
            if metric.distance in of_floor
        }
        if self.against_test:
            of_test = unreliable(self._comparing.values(), self._sizes(self.n, len(self.test)))
            found |= {f"{name}_test": f"against test images, {caution}" for name, caution in of_test.items()}
        if self._fid_by_class:
            ours, theirs = (torch.bincount(of, minlength=self.classes) for of in (self.labels, self.train.labels))
            both = (ours > 1) & (theirs > 1)
            if both.any():
                sizes = self._sizes(int(ours[both].min()), int(theirs[both].min()))
                if caution := FID().caution(sizes):
                    found["fid_class_mean"] = f"within a class, {caution}"
        return found

    @property
    def warnings(self) -> list[str]:
        """What to say of the values."""
        found = [*dict.fromkeys(self.unreliable.values())]
        if self._distances and self._floor_n < self.n:
            found.append(f"the floor comes from all {self._floor_n} test images, for {self.n} samples")
        return found

    def real(self, images: Images, n: int | None = None, extractor: Extractor | None = None) -> dict[str, Tensor]:
        """What the metrics, or an extractor, look at of the first n images, or of all."""
        return real_features(images, extractor or self.extractor, self.levels, n, self.share, self.device, self.leads)

    def draw(
        self,
        diffusion: Diffusion,
        sampler: Sampler,
        shape: tuple[int, int, int],
        seed: int,
        batch_size: int,
        classes: Classes,
        label: str,
        on_batch: Callable[[Tensor, Tensor], None] = lambda pixels, index: None,
    ) -> dict[str, Tensor]:
        """What the metrics look at of the samples.

        Args:
            label: of the progress bar.
            others: as in `sample_features`.
        """
        batches = math.ceil(len(self.share.of(self.n)) / batch_size)
        with Steps(label, batches * sampler.chain(diffusion).T, self.leads) as steps:
            return sample_features(
                diffusion,
                sampler,
                self.extractor,
                shape,
                self.n,
                seed,
                batch_size,
                self.share,
                steps,
                on_batch,
                classes,
            )

    def scores(self, samples: Mapping[str, Tensor]) -> dict[str, Any]:
        """The values of all metrics, by name; samples scored by class must have been drawn by `labels`."""
        found: dict[str, Any] = {**scores(self.metrics, samples, self.reference)}
        if self.against_test:
            of_test = scores(self._comparing, samples, self._held_out)
            found |= {f"{name}_test": value for name, value in of_test.items()}
        if self.by_class and self.network is not None and self.network.name == "classifier":
            found["accuracy"] = accuracy(samples, self.labels)
        if self._fid_by_class and self.reference is not None:
            each = fid_by_class(samples, self.labels, self.reference, self.train.labels)
            found["fid_by_class"] = {str(label): value for label, value in each.items()}
            if each:
                found["fid_class_mean"] = sum(each.values()) / len(each)
        return found

    @property
    def rows(self) -> list[Row]:
        """What to print."""
        by_class = [
            Row("accuracy", "accuracy of the requested classes"),
            Row("fid_class_mean", "FID of one class, mean"),
        ]
        of_test = [
            Row(f"{row.value}_test", f"{row.label}, against test images", row.spread and f"{row.spread}_test")
            for metric in (self._comparing.values() if self.against_test else ())
            for row in metric.rows
        ]
        return rows(self.metrics.values()) + of_test + (by_class if self.by_class else [])

    @property
    def _fid_by_class(self) -> bool:
        return self.by_class and any(isinstance(metric, FID) for metric in self.metrics.values())

    @property
    def _comparing(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if metric.compares}

    @property
    def _distances(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if metric.distance}

    @property
    def _floor_n(self) -> int:
        return min(self.n, len(self.test))

    def _sizes(self, n: int, n_real: int | None = None) -> Sizes:
        network = self.network
        dims = (network.dim, network.classes) if network else (0, 0)
        return Sizes(n, len(self.train) if n_real is None else n_real, *dims)
