"""The house: layers, sizes, words."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_imports_only_point_down():
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("import-linter is not installed (pip install 'stockpot[dev]')")
    result = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_file_has_a_docstring_and_a_bearable_length(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "a module says what it decides"
    assert len(text.splitlines()) <= 500, "split by idea, or give the reason in the docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_no_file_is_named_after_nothing():
    assert not [path for path in SOURCES if path.stem in {"utils", "common", "misc", "base", "helpers"}]


def test_no_room_holds_too_much():
    sizes: dict[str, int] = {}
    for path in SOURCES:
        room = path.relative_to(ROOT / "src" / "stockpot").parts[0]
        sizes[room] = sizes.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    largest = max(sizes, key=lambda room: sizes[room])
    assert sizes[largest] <= sum(sizes.values()) / 4, (
        f"{largest} holds {sizes[largest]} of {sum(sizes.values())} lines"
    )
