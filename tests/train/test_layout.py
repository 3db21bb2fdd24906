"""One process, or two with whole models, a split one or split layers: one curve, and each goes on from the other's state."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from training import new_run, settings

from stockpot.device import World
from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.train import optim
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import ParallelConfig
from stockpot.train.resume import has_parts, read_parts
from stockpot.train.split_muon import owners

CHOICES = {"steps": 6, "batch_tokens": 128, "checkpoint_every": 3, "keep": 9, "validate_every": 3}

SCRIPT = """
import json, shutil, sys
from functools import partial
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from training import Part, new_run, settings, threads_of_gloo
from stockpot.errors import ConfigError
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.train import optim
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import joined

torch.set_num_threads(1)
optim.has_fast_bf16 = lambda device: False  # Muon's products in float32, too
folder, choices = Path({folder!r}), {choices!r}

def train(name, kind, resume=False, heads=2, **more):
    torch.manual_seed(group.place.rank)  # the first process's weights count
    model = Transformer(decoder(layers=2, dim=32, heads=heads, context=16, vocab_size=41))
    parallel = {{"kind": kind}} | more.pop("parallel", {{}})
    config = settings(**choices | more, parallel=parallel)
    run = None
    if not resume and group.is_first:
        run = new_run(folder / name, config)
    elif group.is_first:
        run = Run.create(folder / name, stage="pretrain", recipe={{"pretrain": config}}, resume=True,
                         may_change=["pretrain.parallel.kind"])
    group.wait()
    run = run or Run.open(folder / name)
    seen, saved = [], []
    def validate(module):
        seen.append(float(module.embed.weight.detach().double().sum()))
        return {{"loss": seen[-1]}}
    def save(where):
        torch.save(model.state_dict(), where / "model.pt")
    loss_fn = partial(next_token_loss, byte_lengths=torch.full((41,), 2))
    events = []
    batches = Part(config.parallel.reading(group.place))
    fit(model, batches, loss_fn, config, run=run, resume=resume, validate=validate, save=save, progress=events.append)
    sums = group.gather(torch.stack([p.detach().double().sum() for p in model.parameters()]).sum())
    if group.is_first:
        run.finish("done")
    found = {{"loss": [one["loss"] for one in events if one["kind"] == "step"], "seen": seen,
              "grad_norm": [one["grad_norm"] for one in events if one["kind"] == "step"],
              "same": bool((sums[0] == sums[1]).item())}}
    return found

def half(name, to):
    if group.is_first:  # the run as it was after step 3
        shutil.copytree(folder / name, folder / to, symlinks=True)
        shutil.rmtree(folder / to / "checkpoints" / "step-000006")
        (folder / to / ".lock").unlink(missing_ok=True)
    group.wait()

told = {{}}
with joined(torch.device("cpu")) as group:
    told["ddp"] = train("ddp", "ddp")
    told["fsdp"] = train("fsdp", "fsdp")
    half("fsdp", "fsdp-to-ddp")
    told["fsdp-to-ddp"] = train("fsdp-to-ddp", "ddp", resume=True)
    half("ddp", "ddp-to-fsdp")
    told["ddp-to-fsdp"] = train("ddp-to-fsdp", "fsdp", resume=True)
    told["one-to-fsdp"] = train("one-to-fsdp", "fsdp", resume=True)
    told["adamw"] = train("adamw", "fsdp", optimizer="adamw", eps=1e-3, parallel={{"recompute": True}})
    told["bf16"] = train("bf16", "fsdp", dtype="bfloat16")
    told["behind"] = train("behind", "fsdp", checkpoint_behind=True)
    half("behind", "behind-to-ddp")
    told["behind-to-ddp"] = train("behind-to-ddp", "ddp", resume=True, checkpoint_behind=True)
    told["tensor"] = train("tensor", "tensor")
    for kind in ("ddp", "fsdp"):
        half("tensor", f"tensor-to-{{kind}}")
        told[f"tensor-to-{{kind}}"] = train(f"tensor-to-{{kind}}", kind, resume=True)
        half(kind, f"{{kind}}-to-tensor")
        told[f"{{kind}}-to-tensor"] = train(f"{{kind}}-to-tensor", "tensor", resume=True)
    told["one-to-tensor"] = train("one-to-tensor", "tensor", resume=True)
    for name, how in (("settings", dict(kind="ddp", lr=1e-2 + group.place.rank)), ("heads", dict(kind="tensor", heads=1))):
        try:
            train(name, **how)
        except ConfigError as error:
            told["refused"] = told.get("refused", "") + str(error)
    if group.is_first:
        print(json.dumps(told))
del group
assert not threads_of_gloo(), "they would be killed with the interpreter, and abort it"
"""


def train_alone(folder, stream, monkeypatch, *, resume=False, **more):
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: False)
    config = settings(**CHOICES | more)
    run = (
        Run.create(
            folder,
            stage="pretrain",
            recipe={"pretrain": config},
            resume=True,
            may_change=[f"pretrain.parallel.{name}" for name in ParallelConfig.model_fields],
        )
        if resume
        else new_run(folder, config)
    )
    torch.manual_seed(0)
    model = Transformer(
        decoder(layers=2, dim=32, heads=2, context=16, vocab_size=41)
    )  # 41: parts of unequal size
    tiny_loss = partial(next_token_loss, byte_lengths=torch.full((41,), 2))
    events = []
    with run:
        fit(
            model,
            stream(),
            tiny_loss,
            config,
            run=run,
            resume=resume,
            validate=lambda module: {"loss": float(module.embed.weight.detach().double().sum())},
            save=lambda where: torch.save(model.state_dict(), where / "model.pt"),
            progress=events.append,
        )
    steps = [one for one in events if one["kind"] == "step"]
    return {name: [one[name] for one in steps] for name in ("loss", "grad_norm")}


@pytest.mark.slow
@pytest.mark.distributed
def test_one_process_two_whole_models_and_a_split_one_are_the_same_run(tmp_path, stream, monkeypatch):
    one = train_alone(tmp_path / "one", stream, monkeypatch)
    adamw = train_alone(tmp_path / "plain", stream, monkeypatch, optimizer="adamw", eps=1e-3)
    for kind in ("fsdp", "tensor"):
        shutil.copytree(tmp_path / "one", tmp_path / f"one-to-{kind}", symlinks=True)
        shutil.rmtree(tmp_path / f"one-to-{kind}" / "checkpoints" / "step-000006")
    script = tmp_path / "two.py"
    fields = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "choices": CHOICES}
    script.write_text(SCRIPT.format(**fields), encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-4000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    close = {"rel": 1e-5, "abs": 1e-6}  # float32 sums in another order
    for name in ("ddp", "fsdp", "behind", "tensor"):
        assert told[name]["loss"] == pytest.approx(one["loss"], **close), name
        assert told[name]["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), name
    assert told["adamw"]["loss"] == pytest.approx(adamw["loss"], **close)
    assert told["bf16"]["loss"] == pytest.approx(one["loss"], rel=0.05)  # its weights travel rounded
    resumed = [name for name in told if "-to-" in name]
    assert len(resumed) == 9
    for name in resumed:
        assert told[name]["loss"] == pytest.approx(one["loss"][3:], **close), name
    assert all(told[name]["same"] for name in told if name != "refused"), "both hold the same weights"
    assert "have different settings: 1 not as 0" in told["refused"]
    assert "over 2 processes, but 1 heads, 1 of them with keys" in told["refused"]
    for name in ("ddp", "fsdp", "tensor"):  # and one process goes on where two stopped
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-000006")
        assert has_parts(tmp_path / name / "checkpoints" / "step-000003") == (name != "ddp")
        again = train_alone(tmp_path / name, stream, monkeypatch, resume=True)
        assert again["loss"] == pytest.approx(one["loss"][3:], **close), name
    parts = tmp_path / "adamw" / "checkpoints" / "step-000006" / "state" / "parts"
    next(parts.glob("*00002*")).unlink()
    with pytest.warns(RuntimeWarning, match="is damaged"):  # and the one before is taken
        assert Run.open(tmp_path / "adamw").latest_checkpoint()[0] == 3


def test_every_matrix_has_one_owner_and_the_work_is_even():
    shapes = [(64, 64), (192, 64), (256, 64), (64, 128)] * 6
    found = owners(shapes, 4)
    cost = [rows * columns * min(rows, columns) for rows, columns in shapes]
    load = [sum(cost[i] for i, owner in enumerate(found) if owner == rank) for rank in range(4)]
    assert max(load) < 1.2 * sum(load) / 4
    assert found == owners(shapes, 4)
    assert set(owners([(8, 8)], 4)) == {0}


def test_what_belongs_to_split_models_is_refused_elsewhere():
    with pytest.raises(ConfigError, match="belong to kind = 'fsdp'"):
        ParallelConfig(offload=True)
    with pytest.raises(ConfigError, match="belongs to kind = 'tensor'"):
        ParallelConfig(layer_processes=2)
    with pytest.raises(ConfigError, match=r"do not go with parallel\.kind = 'tensor'"):
        settings(parallel=ParallelConfig(kind="tensor"), compile=True)


def test_processes_that_share_layers_read_the_same_rows():
    config = ParallelConfig(kind="tensor", layer_processes=2)
    places = [config.reading(World(rank, 4, rank)) for rank in range(4)]
    assert [(one.rank, one.world) for one in places] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert ParallelConfig(kind="tensor").reading(World(3, 4)) == World(0, 1)
    assert ParallelConfig(kind="fsdp").reading(World(3, 4)) == World(3, 4)
    with pytest.raises(ConfigError, match="layer_processes = 2 does not divide the 3 processes"):
        config.reading(World(0, 3))


def test_a_checkpoint_without_state_says_so(tmp_path):
    (tmp_path / "state" / "parts").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="a part of the training state is missing"):
        read_parts(tmp_path, {"model.x": torch.zeros(3)}, alone=True)
