"""Training survives being killed: it goes on by itself and ends bit for bit where it would have ended."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot.run import Run
from stockpot.text.tokenizer import Tokenizer
from stockpot.village import Village

KILLS = 20
RECIPE = """
[pretrain]
data = ["{corpus}"]
tokenizer = "{tokenizer}"
size = 1
context = 32
[pretrain.loop]
steps = 400
batch_tokens = 128
log_every = 1
validate_every = 50
checkpoint_every = 7
dtype = "float32"
"""


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if (out / "manifest.json").exists() else []
    command = [
        sys.executable,
        "-m",
        "stockpot",
        "pretrain",
        "--quiet",
        "--recipe",
        str(recipe),
        "--out",
        str(out),
    ]
    return subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors.decode()


def logged(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def losses(out: Path) -> dict[int, float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    corpus = tmp_path / "corpus.txt"
    texts = [record["text"] for record in Village().documents(limit=300)]
    corpus.write_text("\n\n".join(texts), encoding="utf-8")
    Tokenizer.train(texts, vocab_size=400).save(tmp_path / "tok")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(corpus=corpus, tokenizer=tmp_path / "tok"), encoding="utf-8")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    process = start(recipe, whole)
    finish(process)
    dice = random.Random(0)
    for _ in range(KILLS):
        process = start(recipe, torn)
        before, wanted, pause = logged(torn), dice.randrange(1, 25), dice.random() * 0.02
        while logged(torn) < before + wanted - 6 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(pause)
        assert process.poll() is None, (
            f"the training must outlast {KILLS} kills: {process.stderr.read().decode()}"
        )
        process.kill()
        process.communicate()  # closes the pipe too
    process = start(recipe, torn)
    finish(process)
    assert losses(torn) == losses(whole)
    assert len(losses(whole)) == 400
    weights = [(Run.open(out).model_path / "model.safetensors").read_bytes() for out in (whole, torn)]
    assert weights[0] == weights[1]
    assert not list(torn.rglob("*.half*")), "a killed run leaves no half-written file behind"
