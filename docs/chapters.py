"""The chapters of "the lecture, executable": run a page, write what it printed under each block, make its notebook.

``python docs/chapters.py`` does this for all chapters, ``python docs/chapters.py prompting`` for one; ``--words`` renews
only the notebook, of a page whose words have changed. The Markdown page is the only source. Its ``python`` blocks share one
namespace and one folder; a ``bash`` block is ``stockpot`` commands, run in the same process; a ``text`` block right behind a
block is what it printed, and is rewritten; charts that a block saves (``*.svg``) are laid beside the page.
``tests/test_lecture.py`` runs the notebooks and holds them equal to the pages.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = sorted((HERE / "lecture").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.M | re.S)


@dataclass
class Cell:
    """A stretch of a page: ``kind`` is text, python or bash; ``output`` is what stands printed below a block."""

    kind: str
    source: str
    output: str | None = None


def cells(page: str) -> list[Cell]:
    """Cut a page into text and blocks; a fence of another language stays text."""
    found: list[Cell] = []
    end = 0
    for fence in FENCE.finditer(page):
        language, body = fence.groups()
        between = page[end : fence.start()]
        if language == "text" and found and found[-1].kind in ("python", "bash") and not between.strip():
            found[-1].output = body
        elif language in ("python", "bash"):
            found += [Cell("text", between.strip("\n")), Cell(language, body)]
        else:
            continue
        end = fence.end()
    return [one for one in [*found, Cell("text", page[end:].strip("\n"))] if one.source]


def page_of(parts: list[Cell]) -> str:
    """Write the page that ``cells`` cuts."""
    written = []
    for one in parts:
        if one.kind == "text":
            written.append(one.source + "\n")
            continue
        written.append(f"```{one.kind}\n{one.source}```\n")
        if one.output:
            written.append(f"```text\n{one.output}```\n")
    return "\n".join(written)


def notebook_of(parts: list[Cell]) -> str:
    """Write the same as a notebook (nbformat 4.5): commands get a ``!``."""
    made: list[dict[str, Any]] = []
    for number, one in enumerate(parts):
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        source = one.source.rstrip("\n")
        if one.kind == "bash":
            source = "\n".join("!" + line for line in source.split("\n"))
        cell |= {"source": source.splitlines(keepends=True)}
        if one.kind == "text":
            made.append(cell | {"cell_type": "markdown"})
            continue
        lines = (one.output or "").splitlines(keepends=True)
        outputs = [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []
        made.append(cell | {"cell_type": "code", "execution_count": None, "outputs": outputs})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def run(source: str, names: dict[str, Any]) -> str:
    """Run a block, or lines of ``!stockpot …``, in the current folder; return what it printed."""
    if source.startswith("!"):
        return "".join(_command(line) for line in source.splitlines())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(source, "block", "exec"), names)
    return "".join(line.rstrip() + "\n" for line in printed.getvalue().splitlines())


def _command(line: str) -> str:
    from typer.testing import CliRunner

    from stockpot.cli.main import app

    program, *words = shlex.split(line.removeprefix("!"), comments=True)
    assert program == "stockpot", line
    done = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def renew(page: Path, *, runs: bool = True) -> None:
    """Run a page, unless only its words have changed, and write its outputs, its charts and its notebook."""
    parts = cells(page.read_text(encoding="utf-8"))
    if runs:
        _run_all(page, parts)
    page.write_text(page_of(parts), encoding="utf-8")
    page.with_suffix(".ipynb").write_text(notebook_of(parts), encoding="utf-8")


def _run_all(page: Path, parts: list[Cell]) -> None:
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for one in parts:
            if one.kind != "text":
                one.output = run(one.source if one.kind == "python" else "!" + one.source, names)
        for chart in Path().glob("*.svg"):
            (page.parent / chart.name).write_text(chart.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = [one for one in sys.argv[1:] if not one.startswith("--")]
    for one in PAGES:
        if not wanted or one.stem in wanted:
            print(one.stem, flush=True)
            renew(one, runs="--words" not in sys.argv)
