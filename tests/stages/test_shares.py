"""What a plan counts is what processes hold and send: bytes of two that train, in every layout."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stockpot.data.batch import Batch
from stockpot.model import compiled
from stockpot.model.config import decoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.shares import Census, State, Way, sent, share
from stockpot.train.layout import lay_out
from stockpot.train.losses import next_token_loss, sequence_to_sequence_loss
from stockpot.train.muon import Muon
from stockpot.train.optim import OptimConfig, Optimizer
from stockpot.train.parallel import ParallelConfig, joined
from stockpot.train.split_muon import SplitMuon

SIZES = {"layers": 2, "dim": 32, "context": 16, "vocab_size": 41}  # 41: the first of two has a row more
MODELS = {
    "decoder": decoder(heads=4, kv_heads=2, norm_place="sandwich", qkv_bias=True, tied=False, **SIZES),
    "both": encoder_decoder(heads=2, **SIZES),
}
ROWS = 4
WAYS = [
    ("decoder", {"kind": "ddp"}, {}, 1),
    ("decoder", {"kind": "fsdp"}, {}, 1),
    ("decoder", {"kind": "fsdp", "recompute": True}, {"moments": "bfloat16"}, 2),
    ("decoder", {"kind": "tensor"}, {}, 2),
    ("both", {"kind": "tensor"}, {"optimizer": "adamw", "moments": "bfloat16"}, 1),
    ("both", {"kind": "fsdp"}, {"optimizer": "adamw"}, 1),
]


class Counted(TorchDispatchMode):
    """Counts the bytes that this process sends to one other; small sums, which make processes agree, are left out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        kinds = {"all_reduce": 1.0, "allreduce": 1.0, "_c10d_functional.all_gather": 1.0}  # of what goes in
        kinds |= {
            "c10d._allgather": 0.5,
            "c10d._reduce_scatter": 0.5,
            "c10d.alltoall": 0.5,
        }  # of what is whole
        share_sent = next((one for kind, one in kinds.items() if kind in name), 0.0)
        size = max((one.numel() * one.element_size() for one in tensors(args)), default=0)
        self.bytes += share_sent * size if size > 512 else 0.0
        return operation(*args, **(kwargs or {}))


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)


def held(of):
    """Count the bytes of this process's parts; what shares memory counts once."""
    parts = {}
    for one in of:
        part = one.to_local() if hasattr(one, "to_local") else one
        parts[part.data_ptr()] = part.numel() * part.element_size()
    return sum(parts.values())


def gradients(layout):
    """List gradients, also those that wait for a step's last micro-batch."""
    found = [p.grad for p in layout.trained.parameters() if p.grad is not None]
    for root in getattr(layout, "roots", ()):
        for module in root.modules():
            group = module._get_fsdp_state()._fsdp_param_group if hasattr(module, "_get_fsdp_state") else None
            for one in group.fsdp_params if group else ():
                waiting = (
                    [one.unsharded_accumulated_grad, one._unsharded_param.grad]
                    if hasattr(one, "_unsharded_param")
                    else []
                )
                found += [grad for grad in waiting if grad is not None]
    return found


def states(optimizer):
    """List what the optimizer remembers."""
    adamw = optimizer._adamw.state.values() if optimizer._adamw else ()
    found = [one for state in adamw for one in state.values() if one.ndim]
    muon = optimizer._muon
    if isinstance(muon, SplitMuon):
        found += [one for whole in muon.wholes for one in (whole.parameter, whole.parameter.grad)]
        muon = muon.inner
    if isinstance(muon, Muon):
        found += [
            one for stack in muon._stacks for one in (stack.momentum, stack._gradient) if one is not None
        ]
    return found


def measured(group, model, parallel, optim, passes):
    torch.manual_seed(0)
    layout = lay_out(Transformer(MODELS[model]), ParallelConfig(**parallel), group, torch.float32)
    optimizer = Optimizer(layout.described, OptimConfig(lr=1e-3, **optim), 10, layout)
    loss_fn = sequence_to_sequence_loss if MODELS[model].encoder else next_token_loss
    for stack in (one for one in layout.trained.modules() if hasattr(one, "recompute")):
        stack.recompute = parallel.get("recompute", False)
    layout.begin(is_last=passes == 1)  # the first weights, which no step has sent
    with Counted() as counted:
        for number in range(1, passes + 1):
            layout.begin(is_last=number == passes)
            ids = torch.randint(0, 41, (ROWS, 16))
            loss_fn(
                layout.trained, Batch(ids, ids, **({"source": ids} if MODELS[model].encoder else {}))
            ).total.backward()
            if number == passes - 1 or passes == 1:
                found = {"gradients": held(gradients(layout))}
        layout.collect()
        optimizer.step(0)
        layout.begin(is_last=True)  # the new weights where they are computed with
    found["sent"] = counted.bytes
    found["weights"] = held([*layout.trained.parameters(), *layout.tensors.values()])
    found["optimizer"] = held(states(optimizer))
    return found


def main():
    torch.set_num_threads(1)
    compiled.suits = lambda *_: False  # the buffers are those of a GPU
    with joined(torch.device("cpu")) as group:
        told = [group.gather_objects(measured(group, *one)) for one in WAYS]
        if group.is_first:
            print(json.dumps(told))


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_hold_and_send_what_is_planned():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    for (model, parallel, optim, passes), both in zip(
        WAYS, json.loads(ran.stdout.splitlines()[-1]), strict=True
    ):
        census, way = Census(MODELS[model]), replace(Way.of(ParallelConfig(**parallel), 2), wire_bytes=4.0)
        state = State(OptimConfig(**optim), gathers=True)
        facts = {"tokens": ROWS * 16, "passes": passes, "state": state}
        planned = share(census, way, 2, **facts)
        for part in ("weights", "gradients", "optimizer"):
            fullest = max(one[part] for one in both)
            assert fullest == getattr(planned, part), (model, parallel, part)
        assert sum(asdict(sent(census, way, 2, **facts)).values()) == pytest.approx(
            both[0]["sent"], rel=0.01
        ), (model, parallel)


def test_parts_of_all_processes_are_the_whole():
    census = Census(MODELS["decoder"])
    for way in (Way("fsdp"), Way("tensor", 4)):
        one = share(census, way, 4, tokens=64, passes=1, state=State(OptimConfig(), gathers=False))
        whole = share(census, Way("ddp"), 4, tokens=64, passes=1, state=State(OptimConfig(), gathers=False))
        assert whole.weights / 4 < one.weights < whole.weights
        assert one.activations <= whole.activations


def test_layers_computed_again_keep_their_inputs_only():
    census = Census(MODELS["decoder"])
    kept, again = (
        share(
            census, Way("tensor", 2, again), 2, tokens=64, passes=1, state=State(OptimConfig(), gathers=False)
        )
        for again in (False, True)
    )
    a_layer = kept.activations / 2
    assert again.activations == pytest.approx(a_layer + 2 * 4 * 64 * 32)
    assert math.isclose(kept.weights, again.weights)


if __name__ == "__main__":
    main()
