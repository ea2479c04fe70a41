"""Check that a checkpoint's configuration names only ddpm's own options."""

import importlib
import re
import shlex
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from ddpm.setup.entries import brief, walk
from ddpm.support.text import printable

BASES = {
    "schedule": "ddpm.schedule.base:Schedule",
    "parameterization": "ddpm.parameterization.base:Parameterization",
    "variance": "ddpm.variance.base:Variance",
    "network": "ddpm.network.base:Network",
    "conditioning": "ddpm.conditioning.base:Conditioning",
    "loss": "ddpm.loss.base:Loss",
    "time_sampler": "ddpm.time_sampler.base:TimeSampler",
    "sampler": "ddpm.sampler.base:Sampler",
    "data": "ddpm.data.source:Source",
}
"""The config groups whose options a checkpoint names, and the base class of each group's options."""
MODEL = ("schedule", "parameterization", "variance", "network", "conditioning")
"""The groups that define the model; a run can only be resumed with the same options."""
STORED = {*MODEL, "loss", "time_sampler", "sampler", "data", "seed", "image", "evaluation", "total_batch"}
"""The configuration that a checkpoint holds, enough to rebuild, resume and evaluate the model."""


def check_targets(config: Any, trusted: Sequence[str] = ()) -> None:
    """Reject a configuration that names forbidden targets, before importing anything but ddpm's options.

    Args:
        config: the plain configuration from a checkpoint.
        trusted: top-level names of the user's packages that it may also name.
    Raises:
        ValueError: a target is neither a ddpm option of its config group nor in a trusted package, or an entry would
            control the instantiation, holds an interpolation, or is not plain.
    """
    for path, key, value in walk(config):
        if key == "_target_":
            group = path.removesuffix("._target_")
            package = str(value).split(".")[0]
            mine = is_option(value, [group] if group in BASES else list(BASES))
            if not mine and (package not in trusted or package == "ddpm"):
                trust = f"if you trust it, pass {shlex.quote(f'trusted=[{printable(package)}]')}"
                raise ValueError(
                    f"the checkpoint names {path} = {brief(value)}, which is not an option of ddpm; "
                    + (trust if package != "ddpm" else "it is refused")
                )
        elif str(key).startswith("_") or "${" in str(key) or (isinstance(value, str) and "${" in value):
            raise ValueError(f"the checkpoint's configuration holds {path}, which ddpm never writes; it is refused")
        elif isinstance(value, Tensor):
            raise ValueError(f"the checkpoint's configuration holds {path}, a tensor; it is refused")


def is_option(target: Any, groups: Sequence[str]) -> bool:
    """Whether `target` names a ddpm class, in its own module, derived from the base of one of these groups."""
    found = re.fullmatch(r"(ddpm\.([a-z_]+)\.[a-z0-9_]+)\.([A-Z]\w*)", target) if isinstance(target, str) else None
    if found is None or found[2] not in groups:
        return False
    try:
        kind = getattr(importlib.import_module(found[1]), found[3], None)
    except ModuleNotFoundError:
        return False
    return isinstance(kind, type) and issubclass(kind, resolve_name(BASES[found[2]])) and kind.__module__ == found[1]
