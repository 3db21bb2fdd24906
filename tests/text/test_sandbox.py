"""The child process that renders templates does not outlive what it is for."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

from stockpot.text.sandbox import TemplateRefusedError, Worker

ORPHAN = """
import os, sys, time
from stockpot.text.sandbox import Worker
worker = Worker("{{ x }}")
assert worker.render([{"x": 1}]) == ["1"]
if os.fork() == 0:  # a helper that holds the child's pipe open
    time.sleep(30)
    os._exit(0)
print(worker.child.process.pid, flush=True)
os._exit(1)  # as kill -9 would: nothing is tidied up
"""


def is_running(pid: int) -> bool:
    try:
        with pathlib.Path(f"/proc/{pid}/stat").open(encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_refused_template_leaves_no_child():
    worker = Worker("{% for %}")
    for _ in range(2):  # the second time it is refused for what it is, too
        with pytest.raises(TemplateRefusedError, match=r"(?i)expected"):
            worker.render([{}])
        assert worker.child.process is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_child_ends_when_its_parent_is_gone():
    ran = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert ran.stdout is not None
    pid = int(ran.stdout.readline())
    ran.wait()
    ran.stdout.close()
    end = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < end, "the child is still there"
        time.sleep(0.1)
