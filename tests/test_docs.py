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


def test_the_python_of_the_alignment_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    village = sp.Village(seed=1)
    tokenizer = sp.Tokenizer.train([one["text"] for one in village.documents(limit=200)], vocab_size=400)
    model = sp.Transformer(
        sp.decoder(layers=1, dim=32, heads=2, context=192, vocab_size=400, zero_init=False)
    )
    sp.save("runs/chat", sp.Bundle(model, tokenizer, sp.ChatTemplate.of(tokenizer)))
    pairs = "\n".join(json.dumps(record) for record in village.preferences("train", limit=30))
    Path("preferences.jsonl").write_text(pairs, encoding="utf-8")
    *functions, whole = BLOCK.findall((ROOT / "docs/alignment.md").read_text(encoding="utf-8"))
    loop = 'loop=sp.LoopConfig(steps=1, batch_tokens=256, dtype="float32")'
    short = whole.replace('data="preferences.jsonl")', f'data="preferences.jsonl", {loop})')
    short = short.replace("sp.PPOConfig(", "sp.PPOConfig(prompts=2, max_tokens=4, ")
    short = short.replace("sp.DPOConfig(", "sp.DPOConfig(drift_prompts=0, ").replace(
        "limit=50", "limit=4, max_tokens=4"
    )
    assert short.count("steps=1") == 3 and "limit=4" in short
    exec(compile(short, "docs/alignment.md", "exec"), {})
    assert "wins against the first" in capsys.readouterr().out
    for block in functions:
        names: dict = {}
        exec(compile(block, "docs/alignment.md", "exec"), names)
        [rate] = [value for name, value in names.items() if not name.startswith("__")]
        replies = [
            sp.Reply("Hello?", "Yes, please.", None, 4, True),
            sp.Reply("Hello?", "No.", None, 2, True),
        ]
        assert rate(replies)[0] > rate(replies)[1]


def test_every_verb_that_is_shown_exists():
    from stockpot.cli.main import app

    known = {command.name for command in app.registered_commands}
    for page in [*PAGES, "docs/index.md", "docs/alignment.md"]:
        shown = set(re.findall(r"^stockpot ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.M))
        assert shown <= known, f"{page}: {shown - known}"


def test_no_page_leads_nowhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
