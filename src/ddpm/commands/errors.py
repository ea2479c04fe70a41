"""Errors shown to the user as one line, without a stack trace unless HYDRA_FULL_ERROR=1."""

import errno
import os
import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm.support.text import printable

EXPLAINED = (ValueError, OSError, OmegaConfBaseException, HydraException)
"""Errors whose message is all that the user needs."""
FULL = "DDPM_FULL_ERROR"
"""Environment variable with the user's HYDRA_FULL_ERROR, also for the processes of Hydra's launchers."""


def full() -> bool:
    """Whether stack traces are requested."""
    return os.environ.get(FULL) == "1"


def explained(error: BaseException) -> str:
    """The message shown for an error of `EXPLAINED`."""
    if isinstance(error, HydraException):  # its own messages list options, one per line
        cause = error.__cause__
        text = re.sub("To append to your (config|default list) use", "If it is not misspelt, add it with", str(error))
        return f"{text}\n{cause}" if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(error, OSError) and error.strerror:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the path"
        where = f" {error.filename}" if error.filename else ""
        said = f"error: {error.strerror}:{where}; {remedy}, or choose another folder; files already written are kept"
        return printable(said)
    return printable(f"error: {str(error).splitlines()[0]}")
