"""Pretraining by several processes: each reads rows of its own, and together they train as one does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import stockpot as sp
from stockpot.data.corpus import open_corpus
from stockpot.device import World
from stockpot.errors import ConfigError
from stockpot.run import Run
from stockpot.stages.pretrain import _batches, _bundle, pretrain

LOOP = sp.LoopConfig(steps=4, batch_tokens=512, log_every=1, dtype="float32", optimizer="adamw", eps=1e-3)


@pytest.fixture
def config(pantry):
    corpus, tokenizer = pantry / "corpus.jsonl", str(pantry / "tok")
    return sp.PretrainConfig(
        data=str(corpus), tokenizer=tokenizer, size=1, context=64, val_tokens=512, loop=LOOP
    )


def rows(config, place):
    """List the rows that the process at ``place`` reads in the first step."""
    bundle = _bundle(config)
    train, held_out = open_corpus(config.data, bundle.tokenizer).split(config.val_share, seed=0)
    batches, validation = _batches(config, bundle, train, held_out, place)
    return [tuple(row) for row in next(batches).ids.tolist()], [len(batch.ids) for batch in validation]


def test_each_process_reads_its_share_of_a_step(config):
    alone, checks = rows(config, World())
    first, second = (rows(config, World(rank, 2))[0] for rank in (0, 1))
    assert len(first) == len(second) == 4
    assert first + second == alone
    assert checks == [8]


def test_a_step_needs_a_row_for_each_process(config):
    with pytest.raises(
        ConfigError, match="less than a row for each of 9 processes, each of 64 tokens"
    ) as told:
        rows(config, World(0, 9))
    assert "at least 576" in told.value.todo


@pytest.mark.slow  # starts Python three times
@pytest.mark.distributed
def test_two_processes_make_one_run_like_that_of_one(config, pantry, tmp_path):
    words = [
        "--data",
        f"{pantry}/corpus.jsonl",
        "--tokenizer",
        f"{pantry}/tok",
        "--size",
        "1",
        "--steps",
        "4",
    ]
    sets = {"context": 64, "val_tokens": 512} | {
        f"loop.{name}": getattr(LOOP, name)
        for name in ("batch_tokens", "log_every", "dtype", "optimizer", "eps")
    }
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    torchrun = [*("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stockpot")]
    ran = subprocess.run(
        [sys.executable, *torchrun, "pretrain", *words, "--out", str(tmp_path / "two"), "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "done", "one of them speaks"
    two, one = Run.open(tmp_path / "two"), pretrain(config, out=tmp_path / "one")
    assert two.series("tokens") == one.series("tokens")
    for name in ("train/loss", "val/loss"):
        assert [value for _, value in two.series(name)] == pytest.approx(
            [value for _, value in one.series(name)],
            rel=1e-4,  # sums in another order
        )
    more = [sys.executable, *torchrun, "pretrain", "--out", str(tmp_path / "two"), "--resume"]
    assert subprocess.run(more, capture_output=True, check=False, timeout=200).returncode == 0


MORTAL = """
import os, signal, sys
from stockpot.cli.main import main
from stockpot.train.loop import _Loop

whole = _Loop.step

def step(self, place, wish):
    if self.group.place.rank == 1 and self.state.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, place, wish)

if "--resume" not in sys.argv:
    _Loop.step = step
main()
"""


@pytest.mark.slow  # starts Python six times
@pytest.mark.distributed
def test_when_one_process_dies_the_other_says_so_once_and_both_can_go_on(pantry, tmp_path):
    script, out = tmp_path / "mortal.py", tmp_path / "run"
    script.write_text(MORTAL, encoding="utf-8")
    words = ["pretrain", "--data", f"{pantry}/corpus.jsonl", "--tokenizer", f"{pantry}/tok", "--size", "1"]
    sets = ["context=64", "val_tokens=512", "loop.batch_tokens=512", "loop.log_every=1", "loop.dtype=float32"]
    sets += ["loop.parallel.kind=fsdp", "loop.checkpoint_every=2", "loop.steps=5"]
    words += [word for one in sets for word in ("--set", one)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Seldom: torchrun asks the other process to stop as soon as it sees the death, and that may come before it is noticed.
    torchrun += ["--monitor-interval", "5", str(script)]

    def run(*more):
        command = [sys.executable, *torchrun, *words, "--out", str(out), *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    died = run()
    assert died.returncode != 0
    assert died.stderr.count("error: Another process of this run has ended") == 1, died.stderr[-3000:]
    assert Run.open(out).status in ("failed", "interrupted")
    went_on = run("--resume")
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    found = Run.open(out)
    assert [step for step, _ in found.series("train/loss")] == [1, 2, 3, 4, 5]
    assert found.manifest["resumed"][0]["step"] == 2
