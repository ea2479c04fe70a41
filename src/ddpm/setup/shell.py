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
    """The line that runs an entry point of the repository.

    Args:
        entry: `train`, `evaluate` or `sample`.
        arguments: quoted for a shell.
    """
    script = os.path.join(os.path.dirname(sys.argv[0]), f"{entry}.py")
    if not os.path.exists(script):  # the process was started by a launcher of Hydra's
        script = f"{entry}.py"
    return " ".join([shlex.quote(_python()), shlex.quote(script), *arguments])


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


def _python() -> str:
    """`python` where that is this interpreter, else its path."""
    found = shutil.which("python")
    if found and Path(found).parent.resolve() == Path(sys.executable).parent.resolve():
        return "python"
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here
