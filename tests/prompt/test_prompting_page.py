"""The Python of docs/prompting.md runs as it stands there, on a tiny model and with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import stockpot as sp
from stockpot.bundle import Bundle
from stockpot.model.config import decoder, encoder

PAGE = Path(__file__).parents[2] / "docs" / "prompting.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
SHORTER = {  # what the page says → what is run here
    "limit=20": "limit=3",
    'questions=sp.Questions(task="sentiment"))': 'questions=sp.Questions(task="sentiment", limit=3), length=2, '
    "most_examples=8, rows=4, loop={'steps': 1, 'dtype': 'float32'})",
    '"docs.index")': '"docs.index", sp.IndexConfig(encoder="runs/encoder", chunk_tokens=100, overlap_tokens=10))',
    '"smollm2"': '"runs/base"',
    'questions=sp.Questions(task="sentiment", limit=50)': 'questions=sp.Questions(task="sentiment", limit=4, '
    'wordings=("slashes",)), k=2, chosen_on=4, length=2, steps=1, kinds=("wordings", "shots", "soft")',
}


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """Make the models and documents that the page names."""
    monkeypatch.chdir(tmp_path)
    texts = [one["text"] for one in sp.Village(seed=1).documents(limit=200)]
    tokenizer = sp.Tokenizer.train(texts, vocab_size=400)
    for name, shape in (("base", decoder), ("encoder", encoder)):
        torch.manual_seed(0)
        sizes = {"layers": 1, "dim": 32, "heads": 2, "context": 512, "vocab_size": 400, "zero_init": False}
        sp.save(f"runs/{name}", Bundle(sp.Transformer(shape(**sizes)), tokenizer))
    Path("docs").mkdir()
    Path("docs/company.md").write_text(
        "# Staff\n\nIn 2024 Nimbus Graphics had 2,000 employees.", encoding="utf-8"
    )


def test_every_python_block_of_the_page_runs(kitchen, capsys):
    pytest.importorskip("lancedb")
    names: dict = {}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    page = "\n".join(blocks)
    assert len(blocks) >= 6 and all(said in page for said in SHORTER)
    for block in blocks:
        for said, shorter in SHORTER.items():
            block = block.replace(said, shorter)
        exec(compile(block, "docs/prompting.md", "exec"), names)
    assert set(names["curve"].series()) == {"gold", "random", "flipped", "gradient steps"}
    assert len(names["bundle"].soft) == 2
    assert "2,000 employees" in names["reply"].sources[0].text
    assert isinstance(names["reply"], sp.SourcedAnswer)
    assert [rung.trained for rung in names["found"].rungs][-1] == 2 * 32
    assert sum(names["votes"].counts.values()) <= 3
