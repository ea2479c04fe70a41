"""Where the Python processes that are started from here look for modules."""

import os
import sys


def hand_down() -> None:
    """Let them look where this process does: in the folder of the script, in PYTHONPATH, and in what is installed.

    By itself one that is started with -c or -m, as workers and a launcher's jobs are, looks into the current folder
    first, which may have been downloaded.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if not sys.flags.safe_path and os.pathsep not in sys.path[0]:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([os.path.abspath(sys.path[0]), *([before] if before else [])])
