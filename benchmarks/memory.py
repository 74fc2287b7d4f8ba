"""The peak memory of a process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_gib() -> float:
    """GiB that this process has had in memory at most."""
    # On Linux `getrusage` also counts what the parent had when it started this process.
    if STATUS.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.M)):
        return int(found[1]) / 2**20
    # macOS counts bytes, the other systems KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
