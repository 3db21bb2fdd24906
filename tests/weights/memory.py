"""How much memory a piece of a test takes, whatever the tests before it took."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


class Peak:
    """The most memory held since this was made, beyond what was held then."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        self._before = _peak_kib()

    def grown_kib(self) -> int:
        """Return it in KiB."""
        return _peak_kib() - self._before


def _peak_kib() -> int:
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        assert found is not None
        return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
