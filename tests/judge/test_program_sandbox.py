"""Programs that a model may write: none gets out, none fools the tests, each ends, and the next one is judged rightly."""

# ruff: noqa: E501 - each hostile program stands on its line

from __future__ import annotations

import json
import os
import stat
import struct
import time
from pathlib import Path

import pytest
from confining import confined

from stockpot.errors import ConfigError
from stockpot.judge.sandbox import Limits, Verdict, check_sandbox, run_c, run_tests
from stockpot.judge.seccomp import filter_bytes

GOOD, TESTS = "def f(x):\n    return x + 1\n", "assert f(1) == 2\nassert f(-1) == 0\n"
QUICK = Limits(wall_s=2.0, total_mib=256)


@confined
def test_a_right_program_passes_and_a_wrong_one_fails():
    assert run_tests(GOOD, TESTS, entry=["f"]).passed
    assert run_tests(GOOD, TESTS).passed, "the functions are found in the tests"
    wrong = run_tests("def f(x):\n    return x + 2\n", TESTS)
    assert not wrong.passed
    assert "AssertionError" in wrong.why
    assert "f" in run_tests("def g(x): ...", TESTS).why
    assert "SyntaxError" in run_tests("def f(x:", TESTS).why


@confined
def test_values_arrive_as_they_are():
    code = (
        "def same(x): return x\n"
        "def grow(xs): xs.append(4)\n"
        "def kinds(): return 1, 2.5, 'a', b'b', None, True, 1j, [1], {'k': (1, 2)}, {3}, 10 ** 400\n"
        "def fail(): raise KeyError('no')\n"
    )
    tests = (
        "assert kinds() == (1, 2.5, 'a', b'b', None, True, 1j, [1], {'k': (1, 2)}, {3}, 10 ** 400)\n"
        "assert isinstance(kinds(), tuple) and isinstance(kinds()[7], list)\n"
        "assert same(float('inf')) == float('inf') and same(0.1) == 0.1\n"
        "xs = [1]\ngrow(xs)\nassert xs == [1, 4]\n"
        "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass\n"
    )
    assert run_tests(code, tests) == Verdict(True, "", pytest.approx(0, abs=60), "")


@confined
def test_functions_are_found_where_tests_hand_them_on():
    tests = "pair = lambda g, x: (g(x), x)\nassert list(map(f, [1, -1])) == [2, 0] and pair(f, 3) == (4, 3)\n"
    assert run_tests(GOOD, tests) == Verdict(True, "", pytest.approx(0, abs=60), "")


@confined
@pytest.mark.parametrize("tests", ["assert all(map(f, [1, 2]))", "assert not list(map(f, [1, 2]))"])
def test_a_program_cannot_end_the_tests_own_loops(tests):
    found = run_tests("def f(x): raise StopIteration", tests, entry=["f"])
    assert not found.passed and "StopIteration" in found.why


FORGED = {
    "exits with 0": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "import sys\ndef f(x): sys.exit(0)",
    "equals everything": "class A:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\ndef f(x): return A()",
    "an int that equals everything": "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return A(7)",
    "rewrites built-ins": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\nbuiltins.exec = lambda *a: None\ndef f(x): return 0",
    "prints a pass": "print('{\"token\": \"\"}', flush=True)\ndef f(x): return print('passed')",
    "writes to every pipe": (
        'import os\ndef f(x):\n    for fd in range(64):\n        try: os.write(fd, b\'{"token": "x", "value": ["int", "2"], "args": []}\\n\')\n'
        "        except OSError: pass\n    return 0"
    ),
    "looks for the tests": (
        "import gc, sys\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'token' in o: raise SystemExit(o['token'])\n"
        "    fr = sys._getframe()\n    while fr: fr.f_globals['AssertionError'] = Exception; fr = fr.f_back\n    return 0"
    ),
    "traces": "import sys\nsys.settrace(lambda *a: None)\ndef f(x): return None",
}


@confined
@pytest.mark.parametrize("name", FORGED)
def test_a_pass_cannot_be_forged(name):
    assert not run_tests(FORGED[name], TESTS, entry=["f"], limits=QUICK).passed


@confined
def test_tests_that_call_nothing_are_no_pass():
    assert not run_tests(GOOD, "assert True\n", entry=["f"]).passed


BOMBS = {
    "forks": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "eats memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 24))",
    "eats memory in many processes": (
        "import os, time\ndef f(x):\n    for _ in range(12): os.fork()\n    a = bytearray(200 << 20)\n    time.sleep(60)"
    ),
    "prints a gigabyte": "import sys\ndef f(x):\n    for _ in range(1 << 20): sys.stdout.write('x' * 1024)\n    return 2",
    "sleeps": "import time\ndef f(x): time.sleep(600)",
    "spins": "def f(x):\n    while True: pass",
    "kills its parent": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    os.kill(-1, signal.SIGKILL)\n    return 0",
    "fills the disk": "def f(x):\n    for i in range(1000):\n        with open(f'/tmp/{i}', 'wb') as file: file.write(b'x' * (1 << 24))\n    return 2",
    "fills shared memory": "def f(x):\n    with open('/dev/shm/x', 'wb') as file:\n        while True: file.write(b'x' * (1 << 24))",
    "takes memory no limit counts": "import os\ndef f(x):\n    fds = [os.memfd_create(str(i)) for i in range(8)]\n    return 2",
    "is nested without end": "def f(x):\n    a = []\n    for _ in range(10 ** 5): a = [a]\n    return a",
    "answers without end": "def f(x): return 'x' * (1 << 28)",
    "sends a long line": "import os\ndef f(x):\n    while True: os.write(4, b'x' * 65536); os.write(5, b'x' * 65536); os.write(6, b'x' * 65536)",
}


@confined
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_time_and_the_next_program_is_judged_rightly(name):
    start = time.monotonic()
    verdict = run_tests(BOMBS[name], TESTS, entry=["f"], limits=QUICK)
    assert not verdict.passed
    assert verdict.why
    assert time.monotonic() - start < QUICK.wall_s + 30, "on a machine that does other things as well"
    assert run_tests(GOOD, TESTS, entry=["f"]).passed


ESCAPES = {
    "home": "open(os.path.expanduser('~/stockpot-was-here'), 'w')",
    "root": "open('ROOTS_HOME/stockpot-was-here', 'w')",
    "the system": "open('/usr/stockpot-was-here', 'w')",
    "the interpreter": "open(os.path.join(sys.prefix, 'stockpot-was-here'), 'w')",
    "the folder above": "open('/stockpot-was-here', 'w')",
    "the network": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "another process": "os.kill(PID, 0) if PID > 10 else os.kill(99999, 0)",
    "the environment": "open('/proc/1/environ').read().index('=')",
    "its own environment": "list(os.environ)[9]",
    "the test's files": "open('OUTSIDE').read()",
    "becoming root": "os.setuid(0)",
    "tracing": "ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0) and 1 / 0",
    "new namespaces": "os.unshare(0x10000000) if hasattr(os, 'unshare') else 1 / 0",
}


@confined
@pytest.mark.parametrize("what", ESCAPES)
def test_nothing_outside_can_be_reached(what, tmp_path):
    import pwd
    import socket

    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        line = ESCAPES[what].replace("PORT", str(listening.getsockname()[1])).replace("PID", str(os.getpid()))
        line = line.replace("OUTSIDE", str(tmp_path / "secret")).replace("ROOTS_HOME", pwd.getpwuid(0).pw_dir)
        code = f"import os, sys, socket, ctypes\ndef f(x):\n    try:\n        {line}\n        return 'got through'\n    except Exception:\n        return 'refused'\n"
        verdict = run_tests(code, "assert f(1) == 'refused', f(1)\n", entry=["f"])
    assert verdict.passed, verdict.why
    assert not list(Path.home().glob("stockpot-was-here"))


@confined
def test_a_c_program_is_compiled_and_run_inside():
    assert run_c('#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); }').printed == "42\n"
    assert "does not compile" in run_c("int main(void) { return x; }").why
    assert "ended with" in run_c("#include <stdlib.h>\nint main(void) { abort(); }").why
    spins = run_c("int main(void) { for (;;); }", Limits(wall_s=3.0))
    assert "longer than 3 s" in spins.why or "ended with" in spins.why


def test_where_nothing_confines_nothing_runs(tmp_path):
    with pytest.raises(ConfigError, match="cannot be confined"):
        check_sandbox(tmp_path / "no-such-program")
    pretender = tmp_path / "bwrap"  # starts what it is given, without any walls
    pretender.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', encoding="utf-8"
    )
    pretender.chmod(pretender.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ConfigError, match=r"cannot be confined here: .+Nothing was run"):
        check_sandbox(pretender)


def test_the_filter_is_whole_instructions_and_absent_where_numbers_are_unknown():
    for machine in ("x86_64", "aarch64"):
        rules = filter_bytes(machine)
        assert rules is not None
        assert len(rules) % 8 == 0
        count = len(rules) // 8
        for place in range(count):  # every jump lands inside
            code, yes, no, _ = struct.unpack_from("=HBBI", rules, 8 * place)
            if code in (0x15, 0x35, 0x45):
                assert place + 1 + max(yes, no) < count
    assert filter_bytes("vax") is None


def test_values_over_the_pipe_are_plain():
    from stockpot.judge.confined import Refused, pack, unpack

    value = {"a": [1, -2, 2.5, None, True, (1,), {2}, frozenset([3]), b"x", 1j, range(3)]}
    assert unpack(json.loads(json.dumps(pack(value)))) == value
    with pytest.raises(Refused):
        pack(object())
