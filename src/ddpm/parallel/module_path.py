"""The module search path of child Python processes."""

import os
import sys


def hand_down() -> None:
    """Give child processes this one's search path: the script's folder, PYTHONPATH and installed packages.

    By default, a process started with -c or -m, such as a worker or a launcher's job, searches the current folder
    first, which may have been downloaded.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if not sys.flags.safe_path and os.pathsep not in sys.path[0]:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([os.path.abspath(sys.path[0]), *([before] if before else [])])
