"""Counts and times of a server, in the text form that Prometheus reads.

Nothing a client sends becomes a label: routes are named as they are written in the program.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Histogram", "Metrics"]

WAITS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
GAPS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How many values were at most each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self._counts)

    def lines(self, name: str) -> Iterator[str]:
        """Write it down."""
        seen = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            seen += count
            yield f'{name}_bucket{{le="{bound}"}} {seen}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {seen}"


class Metrics:
    """What a server counts.

    Attributes:
        prompt_tokens: read.
        tokens: written.
        under_way: requests of HTTP that are being answered.
    """

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.tokens = 0
        self.under_way = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._waits, self._gaps = Histogram(WAITS_S), Histogram(GAPS_S)

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests[route, status] += 1

    def wrote(self, tokens: int, after_s: float, *, is_first: bool) -> None:
        """Count tokens of one answer, and the seconds since the last ones or since it was asked for."""
        self.tokens += tokens
        (self._waits if is_first else self._gaps).add(after_s)

    @property
    def mean_wait_s(self) -> float:
        """Seconds to a first token, on average; 1 before there was any."""
        return self._waits.total / self._waits.count if self._waits.count else 1.0

    def text(self, gauges: dict[str, float]) -> str:
        """Write everything down, with some values of this moment."""
        lines = ["# TYPE stockpot_http_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'stockpot_http_requests_total{{route="{route}",status="{status}"}} {count}')
        for name, count in (("prompt_tokens", self.prompt_tokens), ("completion_tokens", self.tokens)):
            lines += [f"# TYPE stockpot_{name}_total counter", f"stockpot_{name}_total {count}"]
        for name, histogram in (("time_to_first_token", self._waits), ("inter_token", self._gaps)):
            lines += [
                f"# TYPE stockpot_{name}_seconds histogram",
                *histogram.lines(f"stockpot_{name}_seconds"),
            ]
        gauges = gauges | {
            "http_requests_under_way": self.under_way,
            "resident_memory_bytes": _resident_bytes(),
        }
        for name, value in gauges.items():
            lines += [f"# TYPE stockpot_{name} gauge", f"stockpot_{name} {value:.0f}"]
        return "\n".join(lines) + "\n"


def _resident_bytes() -> int:
    """Memory this process holds; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
