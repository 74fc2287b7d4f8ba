"""The peak memory of a process."""

from __future__ import annotations

import re
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_gib() -> float:
    """GiB that this process has had in memory at most."""
    if STATUS.is_file():
        # On Linux `getrusage` also counts what the parent had when it started this process.
        return int(re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.M)[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
