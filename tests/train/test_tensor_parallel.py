"""Layers split over processes, for every kind of layer that can be: the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from training import Part, settings

from stockpot.model.adapters import LoRA, attach
from stockpot.model.config import decoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.train import optim
from stockpot.train.cuts import faults
from stockpot.train.loop import fit
from stockpot.train.losses import Loss, next_token_loss, sequence_to_sequence_loss
from stockpot.train.parallel import Group, joined

SIZES = {"layers": 2, "dim": 32, "context": 16, "vocab_size": 41}
MODELS = {
    "shared keys, norms on both sides": partial(decoder, heads=4, kv_heads=2, norm_place="sandwich"),
    "biases, positions, no gate": partial(
        decoder, heads=2, ffn="gelu", norm="layer", position="learned", qk_norm=None,
        qkv_bias=True, out_bias=True, ffn_bias=True,
    ),
    "side by side": partial(decoder, heads=2, parallel=True, qkv_bias=True),
    "encoder and decoder": partial(encoder_decoder, heads=2, qkv_bias=True),
    "a lone number": partial(decoder, heads=2),
}  # fmt: skip


class Mine(Part):
    """The share of the batches that is read here, with a source where the model wants one."""

    def __next__(self):
        batch = super().__next__()
        batch.source = batch.ids.flip(1) if self.has_source else None
        return batch

    has_source = False


def warmed_loss(model, batch):
    """Multiply the loss with a number that is learned, a parameter of no dimension."""
    found = next_token_loss(model, batch)
    return Loss(found.total * model.warmth, found.count, found.metrics)


def curves(group, parallel, device="cpu"):
    """Train every model for a few steps; name → losses and norms of the gradient."""
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = Transformer(make(**SIZES)).to(device)
        if name == "a lone number":
            model.warmth = torch.nn.Parameter(torch.tensor(1.0, device=device))
        how = parallel | {"recompute": "side" in name}
        config = settings(steps=5, batch_tokens=256, dtype="float32", parallel=how)  # a round of two or more
        batches, events = Mine(config.parallel.reading(group.place)), []
        batches.has_source = model.encoder is not None
        loss_fn = sequence_to_sequence_loss if batches.has_source else next_token_loss
        loss_fn = warmed_loss if hasattr(model, "warmth") else loss_fn
        fit(model, batches, loss_fn, config, progress=events.append)
        found[name] = [[one["loss"], one["grad_norm"]] for one in events if one["kind"] == "step"]
    return found


def main():
    torch.set_num_threads(1)
    optim.has_fast_bf16 = lambda device: False  # Muon's products in float32, too
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    with joined(device) as group:
        found = curves(group, {"kind": "tensor", "layer_processes": 2}, device)
        if group.is_first:
            print(json.dumps(found))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 4])
def test_layers_split_over_two_processes_learn_as_whole_ones(processes, monkeypatch):
    told = told_by(processes)
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: False)
    for name, one in curves(Group(), {"kind": "tensor"}).items():
        assert len(told[name]) == 5
        assert [loss for loss, _ in told[name]] == pytest.approx([loss for loss, _ in one], rel=1e-5), name
        assert [norm for _, norm in told[name]] == pytest.approx([norm for _, norm in one], rel=1e-4), name


@pytest.mark.gpu
@pytest.mark.distributed
# NCCL wants a card for each process, and gloo's gathering on one card ends in a crash (torch 2.11).
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_layers_split_over_two_cards_learn_as_whole_ones_on_a_cpu(monkeypatch):
    told = told_by(2, "cuda")
    monkeypatch.setattr(optim, "has_fast_bf16", lambda device: False)
    for name, one in curves(Group(), {"kind": "tensor"}).items():
        assert [loss for loss, _ in told[name]] == pytest.approx([loss for loss, _ in one], rel=1e-3), name


def told_by(processes, *arguments):
    """Train in so many processes; return what the first of them printed."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
    command += arguments
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, env=env)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (partial(decoder, heads=4, kv_heads=1), "4 heads, 1 of them with keys, do not divide"),
        (partial(decoder, heads=2, ffn_dim=63), "feed-forward's width 63"),
        (partial(decoder, heads=2, qk_norm="full"), "needs all heads"),
        (partial(decoder, heads=2, position="alibi"), "'alibi' scores each head"),
    ],
)
def test_what_cannot_be_split_is_named(make, fault):
    assert any(fault in one for one in faults(Transformer(make(**SIZES)), 2))


def test_adapters_are_not_split():
    model = Transformer(decoder(heads=2, **SIZES))
    assert not list(faults(model, 2))
    attach(model, LoRA(rank=2))
    assert "adapters" in next(faults(model, 2))


if __name__ == "__main__":
    main()
