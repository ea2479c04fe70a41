"""Build objects from a configuration, with checks across config groups."""

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ddpm.chain.process import Process
from ddpm.data.image_folder import ImageFolder
from ddpm.data.source import Source
from ddpm.loss.base import Loss
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import SizeError
from ddpm.parallel import processes
from ddpm.sampler.base import Sampler
from ddpm.setup.entries import brief
from ddpm.setup.schema import CONF
from ddpm.support.text import printable
from ddpm.variance.base import Variance

SCALARS = (int, float, str, bool, type(None))
LISTS = (list, tuple, Sequence)


def instance(group: str, node: Any, **keywords: Any) -> Any:
    """The object that a config node describes.

    Args:
        group: its config group, for errors.
        node: holds `_target_` and keywords.
        keywords: those that other groups determine.
    Raises:
        ValueError: the target is missing, does not exist, or rejects its keywords.
    """
    node = OmegaConf.create(node) if isinstance(node, dict) else node
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{group} has no _target_, the class to build; choose an option: {group}=...")
    try:
        check_types(group, node)
        return hydra.utils.instantiate(node, **keywords)
    except InstantiationException as error:
        raise ValueError(f"{group}: {_reason(group, error, node)}") from error


def check_types(group: str, node: DictConfig) -> None:
    """Reject a setting whose type is not the plain type that the constructor declares.

    Raises:
        ValueError: names the setting, the allowed types and the value.
    """
    try:
        target = pkgutil.resolve_name(str(node["_target_"]))
    except (ImportError, AttributeError, ValueError):
        return  # Hydra reports what is wrong
    declared = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    settings: Any = OmegaConf.to_container(node, resolve=True)
    for key, value in settings.items():
        kinds = _plain_kinds(declared.get(key))
        built = isinstance(value, dict) and "_target_" in value
        if not built and {*kinds} - {type(None)} and not any(_is(value, kind) for kind in kinds):
            names = " or ".join(sorted(_name(kind) for kind in kinds))
            raise ValueError(f"{group}.{key} must be {names}, got {brief(value)}")


def _plain_kinds(declared: Any) -> list[Any]:
    """The declared types that a configuration can hold."""
    kinds = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    return [kind for kind in kinds if kind in SCALARS or get_origin(kind) in (Literal, dict, *LISTS)]


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if get_origin(kind) in LISTS:
        kinds = _elements(kind)
        return isinstance(value, list) and (not kinds or all(any(_is(each, one) for one in kinds) for each in value))
    return type(value) is kind or (kind is float and type(value) is int)


def _elements(kind: Any) -> set[Any]:
    """The plain types that a list type may hold."""
    return {each for declared in get_args(kind) for each in _plain_kinds(declared)}


def _name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in LISTS:
        return f"list of {' or '.join(sorted(map(_name, _elements(kind))))}"
    return str(kind.__name__)


def keywords(node: Any) -> dict[str, Any]:
    """The default values of the keywords of a config node's target."""
    try:
        parameters = inspect.signature(pkgutil.resolve_name(str(node.get("_target_", "")))).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return {}  # Hydra reports what is wrong
    return {name: each.default for name, each in parameters.items() if each.default is not each.empty}


def instead(asked: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The config node that replaces another node of its group.

    Args:
        asked: the requested node: fields of the old node, or another target with its own fields.
        before: the old node; its non-default settings are kept if the new target takes them too.
    """
    if "_target_" not in asked:
        return before | asked
    own, others = keywords(asked), keywords(before)
    kept = {name: value for name, value in before.items() if name in own and value != others.get(name)}
    return own | kept | asked


def _reason(group: str, error: InstantiationException, node: DictConfig) -> str:
    cause = error.__cause__
    if isinstance(cause, SizeError):
        return f"{cause}; networks for other image sizes: {', '.join(options(group))}"
    if isinstance(cause, TypeError) and "keyword argument" in str(cause):
        allowed = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
        return f"{cause}; {node['_target_']} takes {', '.join(name for name in allowed if name != 'self')}"
    return str(cause or error).splitlines()[0]


def options(group: str) -> list[str]:
    """The options of a group in conf/, sorted by the numbers in their names."""
    names = [path.stem for path in (CONF / group).glob("*.yaml")]
    return sorted(names, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))


def option(part: object) -> str:
    """The option that a part was built from: the name of its module."""
    return type(part).__module__.rsplit(".", 1)[-1]


def variance(node: Any, loss: Loss) -> Variance:
    """The variance that a config node describes, checked against the loss.

    Raises:
        ValueError: the loss does not train this variance, or needs a learned one.
    """
    variance: Variance = instance("variance", node)
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
    return variance


def diffusion(
    cfg: Any, shape: tuple[int, int, int], levels: int, classes: int, variance: Variance | None = None
) -> Diffusion:
    """The model that the groups schedule, parameterization, variance and network describe.

    Args:
        cfg: the configuration.
        shape: image shape (C, H, W); H = W.
        levels: number of grey levels.
        classes: number of classes; 0 for an unconditional network, which need not take `classes`.
        variance: the variance, if already built.
    """
    channels, height, width = shape
    if height != width:
        raise ValueError(
            f"images must be square, got {height} x {width}; crop them, for instance with data=image_folder"
        )
    variance = variance or instance("variance", cfg["variance"])
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
    """The source of images that the configuration describes."""
    return instance("data", cfg["data"])


def check_classes(source: Source, image: dict[str, Any]) -> None:
    """Reject data whose labels mean other classes than in a model's training.

    Args:
        source: source of the data.
        image: the checkpoint's description of its images.
    Raises:
        ValueError: the number of classes differs, or a class, which is named.
    """
    number, here = image.get("classes", 0), source.classes
    if number and len(here) != number:
        raise ValueError(
            f"the data have {len(here)} classes, but the checkpoint's model was trained with {number}; use data "
            f"like its training data"
        )
    # checkpoints without class names number the classes in alphabetical order
    before = image.get("class_names") or (sorted(here) if isinstance(source, ImageFolder) else here)
    for label, (then, now) in enumerate(zip(before, here, strict=False)):
        if number and then != now:
            raise ValueError(
                f"class {label} is {now} in the data, but {printable(then)} in the checkpoint's model; use data "
                f"like its training data"
            )


def fetch(source: Source) -> None:
    """Fetch the data in one process per machine, before all processes load it."""
    for turn in (True, False):
        if turn == (processes.local_rank() == 0):
            source.prepare()
        processes.agreed(None)


def optimizer(node: Any) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Parameters -> optimizer, tried on one parameter so that a wrong keyword fails at once."""
    make: Callable[[Iterable[nn.Parameter]], Optimizer] = instance("optimizer", node)
    try:
        make([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer: {str(error).splitlines()[0]}") from error
    return make


def sampler(node: Any, process: Process) -> Sampler:
    """The sampler that a config node describes, checked against the chain."""
    built: Sampler = instance("sampler", node)
    T = process.T
    if built.steps is not None and built.steps > T:
        raise ValueError(
            f"sampler.steps={built.steps} is more than schedule.T={T}; choose at most {T}, or null for all"
        )
    built.check(process)
    return built
