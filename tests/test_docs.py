"""The README's and the tutorial's Python runs as written, with fewer steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import stockpot as sp

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
PAGES = ["README.md", "docs/tutorial.md", "docs/tokenizers.md"]


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """Make a folder with the files that the pages name."""
    village = sp.Village(seed=1)
    texts = [record["text"] for record in village.documents(limit=400)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts), encoding="utf-8")
    chats = "\n".join(json.dumps(record) for record in village.chats("train", limit=80))
    (tmp_path / "chats.jsonl").write_text(chats, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_runs(page, kitchen, capsys):
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        short = block.replace("steps=200", "steps=1").replace(
            "context=256)),", "context=256), loop=sp.LoopConfig(steps=1, batch_tokens=512)),"
        )
        short = short.replace(
            'data="chats.jsonl")', 'data="chats.jsonl", loop=sp.LoopConfig(steps=1, batch_tokens=512))'
        )
        exec(compile(short, page, "exec"), {})


def test_every_verb_that_is_shown_exists():
    from stockpot.cli.main import app

    known = {command.name for command in app.registered_commands}
    for page in [*PAGES, "docs/index.md"]:
        shown = set(re.findall(r"^stockpot ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.M))
        assert shown <= known, f"{page}: {shown - known}"


def test_no_page_leads_nowhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
