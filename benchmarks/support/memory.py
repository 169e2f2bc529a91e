"""Memory of this process."""

import re
from pathlib import Path


def peak_mb() -> float:
    """Greatest resident memory so far, MB (2²⁰ bytes).

    Not ``ru_maxrss``: that one is inherited from the process that started this one.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "no VmHWM: this needs Linux"
    return int(found[1]) / 1024
