"""The program's manners: help at once, exit codes, two lines for an error, silence for a broken pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.errors import ConfigError

VERBS = sorted(command.name for command in app.registered_commands)
COMMON = ("--json", "--quiet", "--debug")
COMPUTING = {"--device", "--dtype", "--seed"}
NO_USE_FOR = {  # of these flags, what a verb does cannot depend on
    **dict.fromkeys(("train-tokenizer", "prepare", "plan", "compare-tokenizers", "claims"), COMPUTING),
    **dict.fromkeys(("pull", "runs", "recipes", "doctor"), COMPUTING),
    **dict.fromkeys(("inspect", "fill", "embed", "index", "serve", "eval-images"), ("--seed",)),
    **dict.fromkeys(("rank", "ai-feedback", "contest", "draw", "emergence", "three-kinds"), ("--dtype",)),
    "convert": ("--device", "--seed"),
}
MAKING = ("--recipe", "--set", "--out", "--dry-run")
MADE = {
    *("train-tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "grpo", "tune-prompt", "ai-feedback"),
    *("align-image", "train-draw", "rank"),
    "cook",
    "prepare",
}
DONE_AT_ONCE = {"train-tokenizer", "rank", "ai-feedback"}  # these hold nothing that could go on
REPEATED = {"prepare", "sweep"}  # the same command goes on


def stockpot(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stockpot", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def ask(*words: str):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


# --- help ---


def test_the_verbs_are_those_of_the_grammar():
    used = {"generate", "fill", "embed", "draw", "chat", "index", "ask", "serve"}
    judged = {
        "eval",
        "eval-images",
        "contest",
        "compare-tokenizers",
        "prompts",
        "ladder",
        "ledger",
        "claims",
        "probe",
        "emergence",
        "three-kinds",
        "plan",
        "sweep",
    }
    managed = {"inspect", "convert", "pull", "runs", "recipes", "doctor"}
    assert set(VERBS) == MADE | used | judged | managed


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_and_takes_the_common_flags(verb):
    """Flags that change nothing are not taken: many verbs took a device or a seed and did not look at it."""
    shown = ask(verb, "--help")
    assert shown.exit_code == 0
    for flag in COMMON:
        assert flag in shown.stdout
    assert flags_of(verb) & COMPUTING == COMPUTING.difference(NO_USE_FOR.get(verb, ()))
    for flag in MAKING if verb in MADE else ():
        assert flag in shown.stdout


def flags_of(verb: str) -> set[str]:
    """Return the flags that a verb takes."""
    return {word for one in typer.main.get_command(app).commands[verb].params for word in one.opts}


def test_no_verb_offers_to_resume_what_it_cannot():
    offer = {verb for verb in VERBS if "--resume" in flags_of(verb)}
    assert offer == MADE - DONE_AT_ONCE - REPEATED | {"emergence"}


def test_a_plan_makes_nothing_and_takes_no_flag_of_making():
    assert {"--recipe", "--set"} <= flags_of("plan")
    assert not {"--out", "--resume", "--dry-run"} & flags_of("plan")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_names_what_is_given_and_shows_no_type_of_python(verb):
    shown = ask(*verb.split(), "--help").stdout
    assert not re.search(r"<(str|bool|int|path|Path|list)\b", shown), shown


def test_help_lists_making_before_managing():
    text = ask("--help").stdout
    assert text.index("Make") < text.index("Use ") < text.index("Judge") < text.index("Manage")


def test_help_is_quick_and_loads_neither_torch_nor_the_settings():
    code = (
        "import sys\nfrom stockpot.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'pydantic', 'numpy', 'jinja2'} & set(sys.modules)) or 0)"
    )
    best = 9.0
    for _ in range(3):
        before = children_s()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        best = min(best, children_s() - before)
        assert found.returncode == 0, found.stderr
    assert best < 1.0, "the release bar; the aim is 0.5 s"


def children_s() -> float:
    """Return the processor time of finished child processes: what else the machine does must not matter."""
    times = os.times()
    return times.children_user + times.children_system


def test_the_version_is_printed():
    from stockpot import __version__

    assert ask("--version").stdout.strip() == f"stockpot {__version__}"


# --- exit codes ---


@pytest.mark.parametrize(
    "words",
    [
        ("inspct",),
        ("inspect",),
        ("inspect", "x", "--recrods", "3"),
        ("generate", "m", "x", "--seed", "x"),
        ("generate", "m", "x", "--seed", "-1"),
        ("runs", "--seed", "1"),
    ],
)
def test_wrong_usage_exits_with_2(words):
    found = ask(*words)
    assert found.exit_code == 2
    assert found.stdout == ""


def test_wrong_words_are_answered_with_the_right_ones():
    assert "inspect" in ask("inspct").stderr
    assert "--records" in ask("inspect", "x", "--recrods", "3").stderr
    assert "float32, bfloat16" in ask("inspect", "x", "--dtype", "int4").stderr
    told = " ".join(ask("eval-images", "model", "scenes").stderr.replace("│", " ").split())
    assert "There is no place for scenes. Data is named with an option: --data scenes" in told
    assert "no place for b." in ask("chat", "a", "b").stderr


def test_a_known_error_is_two_lines_on_stderr_and_exit_1(tmp_path):
    found = ask("inspect", str(tmp_path / "nothing"))
    assert found.exit_code == 1
    assert found.stdout == ""
    what, todo = found.stderr.splitlines()
    assert what == f"error: {tmp_path / 'nothing'}: there is no such file or folder."
    assert todo.strip() == "Check the path; `stockpot runs` lists runs."


def fails_with(monkeypatch, error: BaseException):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("stockpot.cli.identify.identify", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("what\nis wrong", "do this"), 1, "error: what is wrong\n       do this\n"),
        (ConfigError("what is wrong"), 1, "error: what is wrong\n"),
        (PermissionError(13, "Permission denied", "x.txt"), 1, "error: x.txt: Permission denied\n"),
        (MemoryError(), 1, "error: The memory is not enough.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (ValueError("a bug"), 1, "error: something unforeseen happened (ValueError: a bug).\n"),
    ],
    ids=["known", "short", "system", "memory", "interrupted", "bug"],
)
def test_no_ending_shows_a_traceback(monkeypatch, error, code, words):
    fails_with(monkeypatch, error)
    found = ask("inspect", "x")
    assert found.exit_code == code
    assert found.stderr.startswith(words)
    assert "Traceback" not in found.output


@pytest.mark.parametrize("error", [ConfigError("what", "todo"), ValueError("a bug")])
def test_debug_shows_the_traceback(monkeypatch, error):
    fails_with(monkeypatch, error)
    assert ask("inspect", "x", "--debug").exception is error


def test_a_warning_is_one_line(monkeypatch):
    import warnings

    from stockpot.cli.identify import Found

    def warn(*_, **__):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the newest checkpoint\nis damaged", RuntimeWarning, stacklevel=1)
        return Found("run", "x")

    monkeypatch.setattr("stockpot.cli.identify.identify", warn)
    assert ask("inspect", "x").stderr == "warning: the newest checkpoint is damaged\n"


def test_python_m_stockpot_is_the_program(tmp_path):
    found = stockpot("inspect", str(tmp_path / "nothing"))
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")


def test_a_broken_pipe_is_silent(tmp_path):
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"text": "x" * 1000}) for _ in range(500)))
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "stockpot", "inspect", str(tmp_path / "many.jsonl"), "--records", "500"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_verb_with_130(tmp_path, number):
    code = (
        "import sys, time\nimport stockpot.cli.identify as i\n"
        "def wait(*a, **k):\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(30)\n"
        "i.identify = wait\nsys.argv = ['stockpot', 'inspect', 'x']\n"
        "from stockpot.cli.main import main\nmain()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert errors == "Interrupted.\n"
    assert process.returncode == 130
