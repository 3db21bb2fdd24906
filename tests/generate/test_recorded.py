"""A recorded step computes what the model computes: with rows that nobody owns, in every kind of decoder, compiled or not."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from stockpot.generate.engine import Engine
from stockpot.generate.recorded import PATIENCE, Recorder, _Step
from stockpot.generate.request import Request, Sampling
from stockpot.model import stack
from stockpot.model.adapters import LoRA, attach, without_adapters
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer

SHAPE = {"layers": 2, "dim": 64, "heads": 4, "context": 96, "vocab_size": 300, "zero_init": False}
KINDS = [
    {},
    {"kv_heads": 2, "window": (8, None)},
    {"position": "learned"},
    {"position": "alibi"},
    {"norm": "layer", "ffn": "gelu"},
]
PROMPTS = [[5, 6, 7], [8] * 20, [9, 10], [11, 12, 13, 14, 15, 16, 17]]


def model_of(**choices):
    torch.manual_seed(0)
    return Transformer(decoder(**SHAPE | choices)).eval()


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("choices", KINDS)
@torch.inference_mode()
def test_a_step_equals_the_models(choices, compiles, monkeypatch):
    # what torch makes of the function is torch's business; that the function is the model's is ours
    monkeypatch.setattr(stack, "_compiled_layer", lambda *, alone: stack.run_layer)
    model = model_of(**choices)
    cache = model.new_cache(4, 95)
    for row, ids in enumerate(PROMPTS):
        model(torch.tensor([ids]), cache=cache.rows(row, row + 1))
    plain = [model.new_cache(1, 95) for _ in PROMPTS]
    for one, ids in zip(plain, PROMPTS, strict=True):
        model(torch.tensor([ids]), cache=one)
    step = _Step(model, cache, 4, 64, compiles=compiles)
    kept = cache.lengths[3].item(), cache.keys[0][3, :, :7].clone()
    for ids in ([20, 21, 22], [23, 24, 25]):
        step.put(torch.tensor(ids)[:, None])
        found = step.run()
        for row in range(3):
            alone = model(torch.tensor([[ids[row]]]), cache=plain[row]).logits[0, -1]
            torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-5)
    assert (cache.lengths[3].item(), cache.lengths[:3].tolist()) == (kept[0], [5, 22, 4])
    assert torch.equal(cache.keys[0][3, :, :7], kept[1])  # somebody else's row


def test_a_larger_recording_stands_in_for_a_while(bundle, monkeypatch):
    recorder, cache, made = Recorder(bundle.model), bundle.model.new_cache(8, 90), []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    monkeypatch.setattr(_Step, "record", lambda self, pool: made.append((self._part.batch, self._extent)))
    find = partial(recorder._step_for, cache)
    whole = find(8, 64)
    assert [find(4, 32) for _ in range(PATIENCE)] == [whole] * PATIENCE
    assert find(8, 80) is not whole  # too few positions
    own = find(4, 32)
    assert own is not whole and find(4, 32) is own and find(2, 32) is own  # the next larger one
    assert made == [(8, 64), (8, 80), (4, 32)]


def test_nothing_is_recorded_on_a_cpu(bundle):
    recorder = Recorder(bundle.model)
    recorder.refresh()
    assert not recorder.is_on


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("choices", KINDS)
def test_a_gpu_writes_the_same_recorded_or_not(choices, compiles, bundle, unchecked):
    bundle = dataclasses.replace(bundle, model=model_of(**choices).cuda())
    sampling = Sampling(temperature=0, max_tokens=40)
    prompts = [ids[:] for ids in PROMPTS] * 3
    engine = Engine(bundle, slots=8, compiles=compiles)
    assert engine._scheduler._recorder.is_on
    recorded = engine.generate(prompts, sampling)
    assert engine._scheduler._recorder._kept
    plain = Engine(bundle, slots=8)
    plain._scheduler._recorder.is_on = False
    assert [one.ids for one in recorded] == [one.ids for one in plain.generate(prompts, sampling)]


@pytest.mark.gpu
def test_a_gpu_notices_new_weights_and_adapters(bundle):
    bundle = dataclasses.replace(bundle, model=model_of().cuda())
    sampling = Sampling(temperature=0, max_tokens=30)
    engine = Engine(bundle, slots=4, prefix_mib=0)
    before = engine.generate(PROMPTS, sampling)
    attach(bundle.model, LoRA(rank=4))
    for name, weight in bundle.model.named_parameters():
        if "lora_up" in name:
            torch.nn.init.normal_(weight)
    adapted = engine.generate(PROMPTS, sampling)
    assert [one.ids for one in adapted] != [one.ids for one in before]
    with without_adapters(bundle.model):
        assert [one.ids for one in engine.generate(PROMPTS, sampling)] == [one.ids for one in before]


@pytest.mark.gpu
def test_a_gpu_reads_many_prompts_beside_what_it_writes(bundle):
    engine = Engine(dataclasses.replace(bundle, model=model_of().cuda()), slots=64, prefix_mib=0)
    for at in range(64):
        engine.submit(Request([at + 5] * 64, Sampling(temperature=0, max_tokens=20, min_tokens=20)))
    begun = {chunk.request for _ in range(2) for chunk in engine.step()}
    assert len(begun) == 64  # twice 2,048 tokens, where a CPU would read four prompts a step
