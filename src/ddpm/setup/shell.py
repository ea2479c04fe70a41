"""Commands that the user is shown, to be pasted into bash or zsh."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def command(entry: str, *arguments: str) -> str:
    """The line that runs a command as this process was run: by a script of the repository, `ddpm` or `python -m ddpm`.

    Args:
        entry: `train`, `evaluate` or `sample`.
        arguments: quoted for a shell.
    """
    name = os.path.basename(sys.argv[0])
    if name == "ddpm":
        return " ".join([shlex.quote(_called("ddpm", sys.argv[0])), entry, *arguments])
    if name == "__main__.py":
        return " ".join([shlex.quote(_called("python", sys.executable)), "-m", "ddpm", entry, *arguments])
    script = os.path.join(os.path.dirname(sys.argv[0]), f"{entry}.py")
    if not os.path.exists(script):  # the process was started by a launcher of Hydra's
        script = f"{entry}.py"
    return " ".join([shlex.quote(_called("python", sys.executable)), shlex.quote(script), *arguments])


def argument(key: str, value: str | Path) -> str:
    """`key=value` for a string, as it is typed into a shell."""
    return shlex.quote(f"{key}={quoted(value)}")


def shown(path: str | Path) -> str:
    """A path as seen from here, quoted for a shell."""
    return shlex.quote(os.path.relpath(path))


def quoted(value: str | Path) -> str:
    """A string as Hydra reads it, in quotes if need be."""
    text = str(value).replace("${", r"\${")  # else an interpolation
    return text if text == str(value) and _is_plain(text) else QuotedString(text, Quote.double).with_quotes()


def _is_plain(text: str) -> bool:
    """Whether Hydra reads the text, without quotes, as that same string."""
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return False
    return isinstance(value, str) and value == text


def _called(name: str, path: str) -> str:
    """A program by its name where a shell finds it there, else by its path."""
    found = shutil.which(name)
    if found and Path(found).parent.resolve() == Path(path).parent.resolve():
        return name
    here = os.path.relpath(path)
    return path if here.startswith("..") else here
