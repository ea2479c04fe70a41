"""Commands shown to the user, ready to paste into bash or zsh."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def command(entry: str, *arguments: str) -> str:
    """The line that runs a command the way this process was run: with a script, `ddpm` or `python -m ddpm`.

    Args:
        entry: `train`, `evaluate` or `sample`.
        arguments: options, quoted for a shell.
    """
    name = os.path.basename(sys.argv[0])
    if name == "ddpm":
        return " ".join([shlex.quote(_called("ddpm", sys.argv[0])), entry, *arguments])
    if name == "__main__.py":
        return " ".join([shlex.quote(_called("python", sys.executable)), "-m", "ddpm", entry, *arguments])
    script = os.path.join(os.path.dirname(sys.argv[0]), f"{entry}.py")
    if not os.path.exists(script):  # the process was started by a Hydra launcher
        script = f"{entry}.py"
    return " ".join([shlex.quote(_called("python", sys.executable)), shlex.quote(script), *arguments])


def argument(key: str, value: str | Path) -> str:
    """`key=value` for a string, quoted for a shell."""
    return shlex.quote(f"{key}={quoted(value)}")


def shown(path: str | Path) -> str:
    """A path relative to the current folder, quoted for a shell."""
    return shlex.quote(os.path.relpath(path))


def quoted(value: str | Path) -> str:
    """A string in Hydra's syntax, in quotes if needed."""
    text = str(value).replace("${", r"\${")  # otherwise an interpolation
    return text if text == str(value) and _is_plain(text) else QuotedString(text, Quote.double).with_quotes()


def _is_plain(text: str) -> bool:
    """Whether Hydra reads the unquoted text as the same string."""
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return False
    return isinstance(value, str) and value == text


def _called(name: str, path: str) -> str:
    """A program's name if the shell finds it on PATH, else its path."""
    found = shutil.which(name)
    if found and Path(found).parent.resolve() == Path(path).parent.resolve():
        return name
    here = os.path.relpath(path)
    return path if here.startswith("..") else here
