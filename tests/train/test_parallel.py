from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from training import settings

from stockpot.train.loop import fit

SCRIPT = """
import itertools, json, sys
import torch
sys.path.insert(0, {tests!r})
from conftest import Stream
from training import settings, threads_of_gloo
from stockpot.data.batch import Batch
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import joined

torch.set_num_threads(1)
with joined(torch.device("cpu")) as group:
    rank = group.place.rank
    torch.manual_seed(rank)  # the first process's weights count
    model = Transformer(decoder(layers=2, dim=32, heads=2, context=16, vocab_size=40))

    def mine(whole):
        whole.labels[0, 2:] = -100  # the first process counts fewer labels
        half = slice(2 * rank, 2 * rank + 2)
        return Batch(whole.ids[half], whole.labels[half])

    events = []
    batches = map(mine, itertools.islice(Stream(), {count}))
    fit(model, batches, next_token_loss, settings(**{choices!r}), progress=events.append)
    total = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
    sums = [float(value) for value in group.gather(total)]
    if group.is_first:
        print(json.dumps({{"events": events, "sums": sums}}))
    assert group.is_first or not events
assert not threads_of_gloo(), "they would be killed with the interpreter, and abort it"
"""


def told_by_two(folder: Path, choices, count=None):
    """Train in two processes on so many batches, None: without end; return what the first one told."""
    script = folder / "two.py"
    made = SCRIPT.format(tests=str(Path(__file__).parent), choices=choices, count=count)
    script.write_text(made, encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def uneven(whole):
    whole.labels[0, 2:] = -100
    return whole


@pytest.mark.slow  # two cores for fifteen seconds
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "count"), [("ddp", None), ("fsdp", 5)], ids=["whole", "split, and the data ends amid a step"]
)
def test_two_processes_train_as_one(tmp_path, stream, tiny_model, tiny_loss, kind, count):
    # AdamW with a large eps: nothing that turns float32's rounding into a different step
    choices = {"steps": 6, "optimizer": "adamw", "eps": 1e-3}
    choices |= {} if count is None else {"batch_tokens": 128}  # two batches a step
    told = told_by_two(tmp_path, choices | {"parallel": {"kind": kind}}, count)
    assert told["sums"][0] == told["sums"][1]  # both hold the same weights

    alone = []
    batches = itertools.islice(map(uneven, stream()), count)
    fit(tiny_model(), batches, tiny_loss, settings(**choices), progress=alone.append)
    assert [event["tokens"] for event in alone] == [event["tokens"] for event in told["events"]]
    for name in ("loss", "grad_norm"):
        assert [event[name] for event in told["events"]] == pytest.approx(
            [event[name] for event in alone], rel=1e-4
        )
