"""A child that answers lines: late is who computes too long, not who had to wait for a busy machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from stockpot.child import LineChild

PROGRAM = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked == "spin":
        while True: pass
    if asked == "sleep": time.sleep(60)
    if asked == "end": sys.exit(3)
    print(json.dumps([asked == "fail", asked]), flush=True)
"""


@pytest.fixture
def child():
    made = []

    def make(**choices):
        made.append(LineChild([sys.executable, "-I", "-c", PROGRAM], "hello", start_s=20, **choices))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_answers_fails_and_starts_again(child):
    one = child()
    assert one.ask("soup", 10) == (False, "soup")
    assert one.ask("fail", 10) == (True, "fail")
    with pytest.raises(RuntimeError, match="ended with 3"):
        one.ask("end", 10)
    assert one.ask("soup", 10) == (False, "soup")


@pytest.mark.parametrize(("what", "patience"), [("spin", 1), ("spin", 100), ("sleep", 1)])
def test_a_late_answer_ends_the_process(child, what, patience):
    one = child(patience=patience)
    with pytest.raises(TimeoutError, match=r"longer than 0\.3 s"):
        one.ask(what, 0.3)
    assert one.process is None
    assert one.ask("soup", 10) == (False, "soup")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell computing time")  # noqa: PTH110
def test_waiting_for_the_processor_does_not_count(child):
    one = child(patience=100)
    one.ask("soup", 10)
    pid = one.process.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Thread(target=lambda: (time.sleep(0.8), os.kill(pid, signal.SIGCONT))).start()
    assert one.ask("soup", 0.2) == (False, "soup")


def test_an_interrupted_question_does_not_answer_the_next(child):
    one = child()
    one.start()
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        one.ask("sleep", 30)
    assert one.ask("soup", 10) == (False, "soup")


@pytest.mark.skipif(os.name != "posix", reason="sessions are POSIX's")
def test_ctrl_c_at_the_terminal_does_not_reach_the_child(child):
    one = child()
    one.start()
    assert os.getsid(one.process.pid) != os.getsid(0)
