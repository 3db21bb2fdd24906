"""The README's and the tutorial's Python runs as written, with fewer steps."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import stockpot as sp

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
ALL = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of each ``stockpot`` command in a page's shell blocks."""
    found = []
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.removeprefix("$ ")):
                part = re.sub(r".*-m stockpot ", "stockpot ", part).strip()
                if part.startswith("stockpot "):
                    found.append(shlex.split(part, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_every_command_that_is_shown_has_its_verb_and_flags(page):
    from stockpot.cli.main import app

    group = typer.main.get_command(app)
    own = {flag for one in group.params for flag in one.opts} | {"--help"}
    for verb, *words in commands_of(page):
        if verb in own or verb == "VERB":
            continue
        assert verb in group.commands, f"{page.name}: there is no verb {verb}"
        known = {flag for one in group.commands[verb].params for flag in [*one.opts, *one.secondary_opts]}
        flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"--help"}
        assert flags <= known, f"{page.name}: stockpot {verb} has no {flags - known}"


def test_the_table_of_verbs_is_whole():
    from stockpot.cli.main import app

    table = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## Flags")[0]
    assert [verb for verb in typer.main.get_command(app).commands if f"[`{verb}`]" not in table] == []


def test_no_page_leads_nowhere():
    for page in [*ALL, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_names_every_verb_flag_and_public_name():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    commands, python = reference.commands(), reference.python()
    for verb, command in typer.main.get_command(reference.app).commands.items():
        assert f"### {verb}\n" in commands
        assert all(f"`{flag}`" in commands for one in command.params for flag in one.opts if flag[0] == "-")
    modules = {"losses"}
    assert all(f"### {name}\n" in python for name in set(sp.__all__) - {"__version__"} - modules)
