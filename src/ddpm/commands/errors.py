"""Errors that a user is shown as one line, without a stack trace unless HYDRA_FULL_ERROR=1."""

import errno
import os
import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ddpm.support.text import printable

EXPLAINED = (ValueError, OSError, OmegaConfBaseException, HydraException)
"""Errors that their message explains."""
FULL = "DDPM_FULL_ERROR"
"""Holds what HYDRA_FULL_ERROR was set to, also in the processes that a launcher of Hydra's starts."""


def full() -> bool:
    """Whether stack traces are asked for."""
    return os.environ.get(FULL) == "1"


def explained(error: BaseException) -> str:
    """What the user is told of an error of `EXPLAINED`."""
    if isinstance(error, HydraException):  # its own messages list options, one a line
        cause = error.__cause__
        text = re.sub("To append to your (config|default list) use", "If it is not misspelt, add it with", str(error))
        return f"{text}\n{cause}" if isinstance(cause, OmegaConfBaseException) else text
    if isinstance(error, OSError) and error.strerror:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the path"
        where = f" {error.filename}" if error.filename else ""
        said = f"error: {error.strerror}:{where}; {remedy}, or choose another folder; what was written before is kept"
        return printable(said)
    return printable(f"error: {str(error).splitlines()[0]}")
