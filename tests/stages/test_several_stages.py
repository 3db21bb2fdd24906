"""Tuning, comparisons and rewards on two processes: one launch, every stage, as one process does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stockpot as sp
from stockpot.run import Run

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import stockpot as sp
from stockpot.train.parallel import joined
from {module} import plans

torch.set_num_threads(1)
out = Path({out!r})
with joined(torch.device("cpu")) as group:
    for name, (stage, config) in plans({base!r}, kinds=True).items():
        stage(config, out=out / name)
"""


def plans(base, *, kinds=False):
    """Name the runs: stage and settings; ``kinds``: with a layout for several processes."""

    def loop(kind, **more):
        # batches of one step as whole rounds; a large eps: no rounding becomes a different step
        choices = {
            "steps": 3,
            "log_every": 1,
            "checkpoint_every": 3,
            "dtype": "float32",
            "optimizer": "adamw",
        }
        parallel = {"kind": kind} if kinds else {}
        return sp.LoopConfig(**{**choices, "lr": 1e-3, "eps": 1e-3, **more}, parallel=parallel)

    pairs = {"data": "village:preferences:0:80", "val_share": 0.2, "val_pairs": 8}
    asked = {"data": "village:prompts:0:16", "max_tokens": 8, "prompts": 8, "minibatches": 2, "epochs": 1}
    return {
        "sft": (
            sp.sft,
            sp.SFTConfig(
                model=base, data="village:chats:0:60", loop=loop("fsdp", batch_tokens=1024), context=64
            ),
        ),
        "adapter": (
            sp.sft,
            sp.SFTConfig(
                model=base,
                data="village:chats:0:60",
                loop=loop("fsdp", batch_tokens=1024),
                context=64,
                adapter=sp.LoRA(rank=2),
            ),
        ),
        "dpo": (
            sp.dpo,
            sp.DPOConfig(
                model=base, **pairs, drift_prompts=2, max_tokens=4, loop=loop("ddp", batch_tokens=256)
            ),
        ),
        "reward": (sp.reward, sp.RewardConfig(model=base, **pairs, loop=loop("fsdp", batch_tokens=256))),
        "ppo": (sp.ppo, sp.PPOConfig(model=base, reward="village", **asked, loop=loop("fsdp"))),
        "split sft": (
            sp.sft,
            sp.SFTConfig(
                model=base, data="village:chats:0:60", loop=loop("tensor", batch_tokens=1024), context=64
            ),
        ),
        "split ppo": (sp.ppo, sp.PPOConfig(model=base, reward="village", **asked, loop=loop("tensor"))),
        "split dpo": (
            sp.dpo,
            sp.DPOConfig(
                model=base, **pairs, drift_prompts=2, max_tokens=4, loop=loop("tensor", batch_tokens=256)
            ),
        ),
        "grpo": (sp.grpo, sp.GRPOConfig(model=base, reward="village", samples=2, **asked, loop=loop("ddp"))),
    }


@pytest.mark.distributed
@pytest.mark.slow  # starts Python twice and makes nine runs
def test_every_stage_runs_on_two_processes_as_on_one(tiny_base, tmp_path):
    script = tmp_path / "stages.py"
    script.write_text(
        SCRIPT.format(module=__name__, out=str(tmp_path), base=str(tiny_base)), encoding="utf-8"
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, env=env)
    assert ran.returncode == 0, "\n".join(line for line in ran.stderr.splitlines() if "[rank" in line)[-6000:]
    for name, (stage, config) in plans(str(tiny_base)).items():
        two, one = Run.open(tmp_path / name), stage(config, out=tmp_path / "alone" / name)
        assert two.status == "done", name
        assert [step for step, _ in two.series("train/loss")] == [1, 2, 3], name
        if name not in ("dpo", "reward"):  # which take whole rounds of two batches a step
            assert [v for _, v in two.series("train/loss")] == pytest.approx(
                [v for _, v in one.series("train/loss")], rel=1e-4, abs=1e-5
            ), name
        assert sp.load(two.path).model.config == sp.load(one.path).model.config, name
