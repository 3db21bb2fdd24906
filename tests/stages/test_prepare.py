"""Corpora become the same shards however they are made."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot as sp
from stockpot.data.shards import open_shards
from stockpot.errors import ConfigError, DataError
from stockpot.stages.prepare import PrepareConfig, PrepareReport, prepare
from stockpot.text.tokenizer import Tokenizer
from stockpot.village import Village

SCRIPT = """
import json, os, signal, sys
from stockpot.stages.prepare import PrepareConfig, prepare

def kill(event):
    kill.heard += 1
    if kill.heard == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    kill.heard = 0
    prepare(PrepareConfig(**json.loads(sys.argv[1])), out=sys.argv[2], progress=kill)
"""


def digest(folder: Path) -> dict[str, str]:
    """Fingerprint every file of a folder of shards but the lock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != ".lock"
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Write a corpus in which some documents are there twice and some are bad; returns what prepares it."""
    folder = tmp_path_factory.mktemp("raw")
    texts = [" ".join(one["text"] for one in Village(seed=seed).documents(limit=12)) for seed in range(60)]
    lines = [*texts, *texts[:5], *["too short"] * 3]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in lines)
    (folder / "corpus.jsonl").write_text(rows * 1, encoding="utf-8")
    Tokenizer.train(texts[:10], vocab_size=400).save(folder / "tok")
    made = {"data": str(folder / "corpus.jsonl"), "tokenizer": str(folder / "tok"), "shard_mib": 1}
    return made | {"clean": {"quality": False}}  # villagers reckon more than Gopher likes


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory):
    return prepare(PrepareConfig(**settings), out=tmp_path_factory.mktemp("made") / "shards")


def test_what_is_short_or_there_already_is_left_out_and_counted(made, settings):
    assert made.read == 68
    assert made.kept == 60
    assert made.left_out == {"near another": 5, "too short": 3}
    store = open_shards(made.folder, Tokenizer.load(settings["tokenizer"]))
    assert (store.documents, store.tokens) == (60, made.tokens)
    said = json.loads((made.folder / "report.json").read_text(encoding="utf-8"))
    assert said["left_out"] == made.left_out


def test_the_report_says_how_much_of_the_text_is_left_out(settings, tmp_path):
    """One document of two, but nearly all of the text: the count of documents alone hides that."""
    (tmp_path / "novel.txt").write_text("A chapter in which nothing happens at all. " * 60, encoding="utf-8")
    (tmp_path / "note.txt").write_text("A note of which every single word is kept. " * 3, encoding="utf-8")
    changed = {"data": str(tmp_path / "*.txt"), "clean": {"quality": False, "max_words": 100}}
    report = prepare(PrepareConfig(**settings | changed), out=tmp_path / "shards")
    assert report.left_out_share == 60 / 63
    assert str(report).endswith("1 of 2 documents kept; left out: too long 1 (95.2% of the text)")
    assert "left out: nothing" in str(PrepareReport(tmp_path, read=1, kept=1))


def test_a_corpus_of_which_nothing_stays_is_told_why(settings, tmp_path):
    (tmp_path / "short.txt").write_text("Too short to stay.", encoding="utf-8")
    with pytest.raises(DataError, match=r"None of the 1 documents is kept; left out: too short 1") as caught:
        prepare(PrepareConfig(**settings | {"data": str(tmp_path / "short.txt")}), out=tmp_path / "shards")
    assert "reading.separator" in caught.value.todo


def test_processes_make_the_same_bytes(made, settings, tmp_path):
    prepare(PrepareConfig(**settings, workers=2), out=tmp_path / "b")
    assert digest(tmp_path / "b") == digest(made.folder)


def test_killed_and_run_again_the_bytes_are_the_same(settings, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT, encoding="utf-8")
    small = settings | {"shard_mib": 1, "near": None, "data": [settings["data"]] * 12}
    command = [sys.executable, str(script), json.dumps(small), str(tmp_path / "torn")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == -9, ran.stderr
    assert not (tmp_path / "torn" / "index.json").exists()
    assert list((tmp_path / "torn").glob("*.bin"))
    config = PrepareConfig(**small)
    prepare(config, out=tmp_path / "torn")
    prepare(config, out=tmp_path / "whole")
    assert digest(tmp_path / "torn") == digest(tmp_path / "whole")


def test_shards_are_what_pretraining_reads(made, settings, tmp_path):
    loop = sp.LoopConfig(steps=1, batch_tokens=128, dtype="float32")
    config = sp.PretrainConfig(
        data=str(made.folder), tokenizer=settings["tokenizer"], size=1, context=32, val_tokens=64, loop=loop
    )
    assert sp.pretrain(config, out=tmp_path / "run").status == "done"


def test_a_ray_head_that_is_not_there_is_named_at_once(settings, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"The Ray head at 127.0.0.1:{port} is out of reach"):
        prepare(PrepareConfig(**settings, ray=f"127.0.0.1:{port}"), out=tmp_path / "r")


@pytest.mark.slow  # starts a Ray cluster
@pytest.mark.filterwarnings("ignore")  # of Ray, about its own parts
def test_a_ray_cluster_makes_the_same_bytes(made, settings, tmp_path):
    pytest.importorskip("ray")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    head = [
        "start",
        "--head",
        "--port=6399",
        "--num-cpus=1",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    started = subprocess.run(
        [*ray, *head, "--node-ip-address=127.0.0.1"], env=env, capture_output=True, text=True
    )
    assert started.returncode == 0, started.stderr
    try:
        prepare(PrepareConfig(**settings, ray="127.0.0.1:6399"), out=tmp_path / "r")
        assert digest(tmp_path / "r") == digest(made.folder)
    finally:
        subprocess.run([*ray, "stop", "--force"], env=env, capture_output=True)


@pytest.mark.parametrize(
    ("shards", "said"), [(1, "in 1 shard;"), (2, "in 2 shards;"), (1200, "in 1,200 shards;")]
)
def test_the_report_counts_as_people_do(tmp_path, shards, said):
    assert said in str(PrepareReport(tmp_path, shards=shards))
