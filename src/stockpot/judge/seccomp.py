"""Which calls of the system a confined program may not make, as a filter that bubblewrap loads.

The filter takes what namespaces and limits leave open: memory that no limit counts (shared memory, memory files), tracing, keys,
new namespaces, and parts of the kernel with a long record of holes (bpf, io_uring, userfaultfd). All else is allowed.

Source of numbers and structures: Linux's unistd tables, seccomp(2) and bpf's ``struct sock_filter``.
"""

from __future__ import annotations

import platform
import struct

__all__ = ["filter_bytes"]

LOAD, EQUAL, AT_LEAST, MASK, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # bpf opcodes: ld, jeq, jge, jset, ret
KILL, ALLOW, ERROR = 0x80000000, 0x7FFF0000, 0x00050000
NOT_PERMITTED, NOT_THERE = 1, 38
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | …CGROUP | …UTS | …IPC | …USER | …PID | …NET

_X86 = {
    "audit": 0xC000003E,
    "clone": 56,
    "clone3": 435,
    "denied": (
        *(29, 30, 31, 64, 68, 240),  # shmget shmat shmctl semget msgget mq_open
        *(101, 310, 311, 312),  # ptrace process_vm_readv process_vm_writev kcmp
        *(155, 161, 165, 166, 167, 169, 272, 308, 428, 429, 430, 432, 442),  # root and mounts, namespaces
        *(175, 176, 246, 313, 320),  # modules and kexec
        *(248, 249, 250, 298, 303, 304, 319, 321, 323, 447),  # keys perf handles memfd bpf userfaultfd
        *(425, 426, 427),  # io_uring
    ),
}
_ARM = {
    "audit": 0xC00000B7,
    "clone": 220,
    "clone3": 435,
    "denied": (
        *(194, 195, 196, 190, 186, 180),
        *(117, 270, 271, 272),
        *(41, 51, 40, 39, 224, 142, 97, 268, 428, 429, 430, 432, 442),
        *(105, 106, 104, 273, 294),
        *(217, 218, 219, 241, 264, 265, 279, 280, 282, 447),
        *(425, 426, 427),
    ),
}
_TABLES = {"x86_64": _X86, "aarch64": _ARM}


def filter_bytes(machine: str | None = None) -> bytes | None:
    """Give the filter for a machine as bubblewrap reads it; None where its numbers are not known."""
    table = _TABLES.get(machine or platform.machine())
    if table is None:
        return None
    denied, clone, clone3 = table["denied"], table["clone"], table["clone3"]
    assert isinstance(denied, tuple) and isinstance(clone, int) and isinstance(clone3, int)
    # Jumps count instructions ahead; the four returns stand at the end: kill, not there, not permitted, allow.
    steps: list[tuple[int, int, int, int]] = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, int(str(table["audit"])))]
    steps.append((RETURN, 0, 0, KILL))
    steps.append((LOAD, 0, 0, 0))
    body: list[tuple[int, str, int]] = [(AT_LEAST, "not permitted", 0x40000000), (EQUAL, "not there", clone3)]
    body += [(EQUAL, "not permitted", number) for number in denied]
    count = len(body)
    ends = {"not there": 3, "not permitted": 4}  # behind the body: two steps for clone, then allow
    for place, (test, end, value) in enumerate(body):
        steps.append((test, count - place - 1 + ends[end] + 1, 0, value))
    steps.append((EQUAL, 0, 2, clone))
    steps.append((LOAD, 0, 0, 16))  # the low half of clone's flags
    steps.append((MASK, 2, 0, NEW_NAMESPACES))
    steps.append((RETURN, 0, 0, ALLOW))
    steps.append((RETURN, 0, 0, ERROR | NOT_THERE))
    steps.append((RETURN, 0, 0, ERROR | NOT_PERMITTED))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
