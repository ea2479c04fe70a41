"""From a configuration to objects, with the checks that span several groups."""

import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ddpm import processes
from ddpm.data.image_folder import ImageFolder
from ddpm.data.names import printable
from ddpm.data.source import Source
from ddpm.diffusion import Diffusion
from ddpm.loss.base import Loss
from ddpm.process import Process
from ddpm.sampler.base import Sampler
from ddpm.variance.base import Variance


def instance(group: str, node: Any, **keywords: Any) -> Any:
    """The object that a config node describes.

    Args:
        group: its config group, for errors.
        node: with `_target_` and keywords.
        keywords: that other groups determine.
    Raises:
        ValueError: there is no target, it does not exist, or it refuses its keywords.
    """
    node = OmegaConf.create(node) if isinstance(node, dict) else node
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{group} has no _target_, the class to build; choose an option: {group}=...")
    try:
        _check_types(group, node)
        return hydra.utils.instantiate(node, **keywords)
    except InstantiationException as error:
        raise ValueError(f"{group}: {_reason(error, node)}") from error


def _check_types(group: str, node: DictConfig) -> None:
    """Refuse a setting that is not of the plain type that the constructor declares."""
    try:
        target = pkgutil.resolve_name(str(node["_target_"]))
    except (ImportError, AttributeError, ValueError):
        return  # Hydra says what is wrong with it
    declared = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    settings: dict[Any, Any] = dict(node)
    for key, value in settings.items():
        kinds = set(get_args(declared.get(key))) or {declared.get(key)}
        if kinds <= {int, float, str, bool, type(None)} and isinstance(value, int | float | str | bool | None):
            fitting = kinds | ({int} if float in kinds else set())
            if type(value) not in fitting:
                names = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))
                raise ValueError(f"{group}.{key} must be {names}, got {value!r}")


def _reason(error: InstantiationException, node: DictConfig) -> str:
    cause = error.__cause__
    if isinstance(cause, TypeError) and "keyword argument" in str(cause):
        allowed = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
        return f"{cause}; {node['_target_']} takes {', '.join(name for name in allowed if name != 'self')}"
    return str(cause or error).splitlines()[0]


def option(part: object) -> str:
    """The name of the option that a part was built from: its file."""
    return type(part).__module__.rsplit(".", 1)[-1]


def check_variance(loss: Loss, variance: Variance) -> None:
    """Refuse a loss that cannot train the variance, or that needs one to train.

    Raises:
        ValueError: naming both choices and the remedy.
    """
    if variance.extra_channels and not loss.trains_variance:
        raise ValueError(
            f"loss={option(loss)} does not train variance={option(variance)}; choose loss=hybrid or loss=vlb, "
            f"or variance=fixed_small or fixed_large"
        )
    if loss.needs_learned_variance and not variance.extra_channels:
        raise ValueError(
            f"loss={option(loss)} trains a learned variance, but variance={option(variance)} is fixed; choose "
            f"variance=learned_range or learned, or loss=simple"
        )


def diffusion(cfg: Any, shape: tuple[int, int, int], levels: int, classes: int) -> Diffusion:
    """The model that the groups schedule, parameterization, variance and network describe.

    Args:
        cfg: the configuration.
        shape: of an image, (C, H, W); H = W.
        levels: number of grey levels.
        classes: that the network can be given; 0 for an unconditional one, which need not know of classes.
    """
    channels, height, width = shape
    if height != width:
        raise ValueError(
            f"images must be square, got {height} x {width}; crop them, for instance with data=image_folder"
        )
    variance = instance("variance", cfg["variance"])
    network = instance(
        "network",
        cfg["network"],
        image_size=height,
        in_channels=channels,
        out_channels=channels * (1 + variance.extra_channels),
        **({"classes": classes} if classes else {}),
    )
    try:
        process = Process(instance("schedule", cfg["schedule"]).beta())
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if "schedule" in str(error) else f"schedule: {error}") from error
    parameterization = instance("parameterization", cfg["parameterization"])
    return Diffusion(network, process, parameterization, variance, levels, classes)


def source(cfg: Any) -> Source:
    """Where the images come from."""
    return instance("data", cfg["data"])


def check_classes(source: Source, image: dict[str, Any]) -> None:
    """Refuse data whose labels mean other classes than those that a model was trained with.

    Args:
        source: of the data.
        image: what the model's checkpoint says of its images.
    Raises:
        ValueError: naming the first class that differs.
    """
    number, here = image.get("classes", 0), source.classes
    if number and len(here) != number:
        raise ValueError(
            f"the data have {len(here)} classes, but the checkpoint's model was trained with {number}; give it data "
            f"like those it was trained on"
        )
    # a checkpoint without names is of classes in the order of letters
    before = image.get("class_names") or (sorted(here) if isinstance(source, ImageFolder) else here)
    for label, (then, now) in enumerate(zip(before, here, strict=False)):
        if number and then != now:
            raise ValueError(
                f"class {label} of the data is {now}, but {printable(then)} of the checkpoint's model; give it data "
                f"like those it was trained on"
            )


def fetch(source: Source) -> None:
    """Let one process of each machine fetch the data, before all load it."""
    for turn in (True, False):
        if turn == (processes.local_rank() == 0):
            source.prepare()
        processes.agreed(None)


def optimizer(node: Any) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Parameters -> optimizer, tried on one parameter so that a wrong keyword shows at once."""
    make: Callable[[Iterable[nn.Parameter]], Optimizer] = instance("optimizer", node)
    try:
        make([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer: {str(error).splitlines()[0]}") from error
    return make


def sampler(node: Any, process: Process) -> Sampler:
    """A sampler that fits a chain."""
    built: Sampler = instance("sampler", node)
    built.check(process)
    return built
