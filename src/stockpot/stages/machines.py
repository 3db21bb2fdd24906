"""What accelerators can do, from their makers' data sheets, and how often clusters fail.

Facts only, with their sources; what follows from them is `cluster`'s business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stockpot.errors import ConfigError

__all__ = ["FAILURE_DAYS", "MACHINES", "Machine", "devices_of"]

FAILURE_DAYS = 16_384 * 54 / 419
"""Mean days between failures of one accelerator with its share of the host: 419 unplanned stops in 54 days on 16,384
H100s. Source: Llama team 2024, arXiv:2407.21783, §3.3.4."""


@dataclass(frozen=True)
class Machine:
    """One accelerator.

    Attributes:
        flops: dense bfloat16 products, operations per second.
        memory_gib: of the accelerator.
        memory_gb_s: how fast it reads its memory.
        link_gb_s: to the others of its host, one direction.
        network_gb_s: to other hosts, its share, one direction.
        per_host: how many a host has.
    """

    flops: float
    memory_gib: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    per_host: int


MACHINES: dict[str, Machine] = {
    # data sheets of the makers; "with sparsity" figures halved. Links: NVLink where there is one, else PCIe.
    "H100": Machine(989e12, 80, 3350, 450, 50, 8),
    "H200": Machine(989e12, 141, 4800, 450, 50, 8),
    "B200": Machine(2250e12, 180, 8000, 900, 50, 8),
    "A100": Machine(312e12, 80, 2039, 300, 25, 8),
    "A100-40": Machine(312e12, 40, 1555, 300, 25, 8),
    "L40S": Machine(362e12, 48, 864, 32, 12, 8),
    "L4": Machine(121e12, 24, 300, 32, 12, 8),
    "RTX4090": Machine(165e12, 24, 1008, 32, 3, 4),
    "RTX3090": Machine(71e12, 24, 936, 32, 3, 4),
}


def devices_of(text: str) -> tuple[int, str]:
    """Read ``8xH100``, ``H200`` or ``cpu`` as count and name.

    Raises:
        ConfigError: if there is no such machine.
    """
    found = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z0-9-]+)", text.strip())
    names = {name.lower(): name for name in MACHINES} | {"cpu": "cpu"}
    if found is None or found[2].lower() not in names or found[1] == "0":
        raise ConfigError(
            f"devices {text!r} are unknown.",
            f"Give a count and one of: {', '.join(MACHINES)}, cpu. Example: 8xH100.",
        )
    return int(found[1] or 1), names[found[2].lower()]
