"""The options of the project, found in its folders: a new file is tested by being there."""

from pkgutil import resolve_name

import yaml

from ddpm.setup.schema import CONF


def options(group, **keywords):
    """One object for each file of conf/<group>, built as the file says but for these keywords."""
    nodes = [yaml.safe_load(path.read_text()) for path in sorted((CONF / group).glob("*.yaml"))]
    return [resolve_name(node.pop("_target_"))(**{**node, **keywords}) for node in nodes]


def names(objects):
    """What pytest calls them: their classes."""
    return [type(each).__name__ for each in objects]


PARAMETERIZATIONS = options("parameterization")
VARIANCES = options("variance")
SCHEDULES = options("schedule")
LOSSES = options("loss")
