"""Means in bfloat16 on several processes: replicas round alike, parts round as the whole would, a resumed run goes on exactly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from training import Part, new_run, settings

from stockpot.errors import ConfigError
from stockpot.model import compiled
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import Group, joined

# A large eps: nothing that turns float32's rounding into a different step. 41: parts of unequal size.
CHOICES = {"steps": 12, "batch_tokens": 256, "optimizer": "adamw", "eps": 1e-3, "moments": "bfloat16"}
CHOICES |= {"checkpoint_every": 6, "keep": 9}
SIZES = {"layers": 2, "dim": 32, "heads": 2, "context": 16, "vocab_size": 41}


def train(group, folder, parallel, **more):
    """Train, then go on from the middle as well; returns losses, and the processes' digests of the weights of both."""
    config = settings(**CHOICES | more, parallel=parallel)
    found = {}
    for part in ("whole", "resumed"):
        if part == "resumed" and group.is_first:
            shutil.rmtree(folder / "checkpoints" / "step-000012")
            (folder / ".lock").unlink(missing_ok=True)
        group.wait()
        torch.manual_seed(0)
        model = Transformer(decoder(**SIZES))
        if group.is_first:
            recipe = {"pretrain": config}
            is_new = part == "whole"
            made = (
                new_run(folder, config)
                if is_new
                else Run.create(folder, stage="pretrain", recipe=recipe, resume=True)
            )
        group.wait()
        run = made if group.is_first else Run.open(folder)
        events = []
        resume = part == "resumed"
        batches = Part(config.parallel.reading(group.place))
        loss_fn = partial(next_token_loss, byte_lengths=torch.full((41,), 2))
        fit(model, batches, loss_fn, config, run=run, resume=resume, progress=events.append)
        if group.is_first:
            made.finish("done")
        content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        digest = hashlib.sha256(content).hexdigest()
        losses = [one["loss"] for one in events if one["kind"] == "step"]
        found[part] = {"loss": losses, "digests": group.gather_objects(digest)}
    return found


def main(folder):
    torch.set_num_threads(1)
    told = {}
    with joined(torch.device("cpu")) as group:
        kinds = ("ddp", "fsdp", "tensor") if group.place.world == 2 else ("tensor",)
        for kind in kinds:
            parallel = {"kind": kind} | ({"layer_processes": 2} if kind == "tensor" else {})
            told[kind] = train(group, folder / kind, parallel)
        suits = compiled.suits
        if group.place.rank == 1:
            compiled.suits = lambda *_: (
                not suits(torch.zeros(1))
            )  # this host has no compiler, or is the only one
        try:
            train(group, folder / "refused", {"kind": "ddp"})
        except ConfigError as error:
            told["refused"] = str(error)
        if group.is_first:
            print(json.dumps(told))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 4])  # 4: pairs that hold the same
def test_means_in_bfloat16_are_the_same_on_several_processes(processes, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    whole = [sys.executable, *command, str(tmp_path)]
    ran = subprocess.run(whole, capture_output=True, text=True, timeout=200, env=env)
    assert ran.returncode == 0, ran.stderr[-4000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert "have different arithmetic of AdamW: 1 not as 0" in told.pop("refused")
    alone = train(Group(), tmp_path / "alone", {})
    wide = train(Group(), tmp_path / "wide", {}, moments="float32")
    apart = [abs(a - b) for a, b in zip(alone["whole"]["loss"], wide["whole"]["loss"], strict=True)]
    assert max(apart) > 2e-5, "rounding is seen; sums in another order move a loss by less than 1e-6"
    for kind, found in told.items():
        assert found["whole"]["loss"] == pytest.approx(alone["whole"]["loss"], abs=max(apart) / 10), kind
        assert found["resumed"]["loss"] == found["whole"]["loss"][6:], kind
        assert len(set(found["whole"]["digests"] + found["resumed"]["digests"])) == 1, kind
    assert alone["resumed"]["digests"] == alone["whole"]["digests"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
