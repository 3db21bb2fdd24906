"""The chapters of "the lecture, executable": notebooks equal their pages, and each runs as it stands."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "lecture").glob("*.md"))
LONG = {"prompting", "post-training", "images"}  # they train models for half a minute


@pytest.fixture(scope="module")
def chapters():
    spec = importlib.util.spec_from_file_location("chapters", DOCS / "chapters.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["chapters"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_notebook_is_made_from_the_page(page, chapters):
    parts = chapters.cells(page.read_text(encoding="utf-8"))
    made = page.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert chapters.notebook_of(parts) == made, f"run: python docs/chapters.py {page.stem}"
    assert chapters.page_of(parts) == page.read_text(encoding="utf-8")
    assert sum(one.output is not None for one in parts) >= 3, "a chapter shows what it printed"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else (), id=page.stem) for page in PAGES],
)
def test_the_notebook_runs(page, chapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            printed = chapters.run("".join(cell["source"]), names)
            assert bool(printed) == bool(cell["outputs"]), "".join(cell["source"])
    for chart in tmp_path.glob("*.svg"):
        assert (page.parent / chart.name).exists(), f"{chart.name} is not beside the page"
