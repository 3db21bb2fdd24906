"""Our kernels for a written token on a GPU compute what the layers compute; on a CPU they run in Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch

from stockpot.generate.recorded import _Step
from stockpot.model.adapters import LoRA, attach
from stockpot.model.cache import SlotCache
from stockpot.model.config import decoder
from stockpot.model.token_layers import is_known, token_layers
from stockpot.model.transformer import Transformer

SHAPE = {
    "layers": 2,
    "dim": 48,
    "heads": 4,
    "head_dim": 16,
    "context": 96,
    "vocab_size": 60,
    "zero_init": False,
}
KNOWN = [
    {},
    {"kv_heads": 2, "window": (8, None)},
    {"qk_norm": None, "position": "none"},
    {"position": "learned"},
    {"rope_local_theta": 100.0, "window": (5, None)},
]
UNKNOWN = [
    {"position": "alibi"},
    {"ffn": "gelu"},
    {"ffn": "geglu"},
    {"norm": "layer"},
    {"norm_place": "sandwich"},
    {"parallel": True},
    {"qkv_bias": True},
    {"qk_norm": "full"},
    {"attention_softcap": 5.0},
    {"rope_fraction": 0.5},
    {"heads": 2, "head_dim": 24},
]


def model_of(**choices):
    torch.manual_seed(0)
    return Transformer(decoder(**SHAPE | choices)).to(torch.bfloat16).eval()


@pytest.mark.parametrize("choices", KNOWN)
def test_the_usual_decoders_are_known(choices):
    model = model_of(**choices)
    stack = model.decoder
    assert is_known(stack.config, stack.layers, torch.bfloat16)
    assert not is_known(stack.config, stack.layers, torch.float32)


@pytest.mark.parametrize("choices", UNKNOWN)
def test_others_are_not(choices):
    stack = model_of(**choices).decoder
    assert not is_known(stack.config, stack.layers, torch.bfloat16)


def test_adapters_are_left_to_torch():
    model = model_of()
    attach(model, LoRA(rank=2))
    assert not is_known(model.decoder.config, model.decoder.layers, torch.bfloat16)


@torch.inference_mode()
def errors(device, choices, held, rows, *, compiles=True):
    """Write two tokens behind prompts; return the relative errors of our kernels' logits, and of torch's operations."""
    model = model_of(**choices).to(device)
    exact = copy.deepcopy(model).float()
    prompt = torch.randint(0, 60, (rows, held), generator=torch.Generator().manual_seed(1)).to(device)
    caches = [one.new_cache(rows, 95) for one in (model, model, exact)]
    for one, cache in zip((model, model, exact), caches, strict=True):
        one(prompt, cache=cache)
    assert token_layers(model.decoder.config, model.decoder.layers, model.embed(prompt[:, :1])) is not None
    step = _Step(model, caches[0], rows, 64, compiles=compiles)
    if device == "cuda":
        step.record(torch.cuda.graph_pool_handle())
    found = []
    for id in (7, 9):
        ids = torch.arange(id, id + rows, device=device)[:, None]
        if device == "cuda":
            ours = step.play(ids)
        else:
            step.put(ids)
            ours = step.run()
        plain = model(ids, cache=caches[1]).logits[:, -1]
        wanted = exact(ids, cache=caches[2]).logits[:, -1]
        found += [
            (float((ours - wanted).norm() / wanted.norm()), float((plain - wanted).norm() / wanted.norm()))
        ]
    return found


@pytest.mark.parametrize("choices", KNOWN)
@pytest.mark.parametrize("rows", [1, 3])
def test_layers_are_computed(choices, rows, interpreted, unchecked):
    for ours, _ in errors("cpu", choices, 21, rows):  # torch's own way on a CPU goes through float32
        assert ours < 0.015


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "slot", "window"),
    [
        (1, 4, 2, 555, 0),  # three programs a head, the last of them half empty
        (1, 2, 2, 1290, 0),
        (1, 4, 4, 7, 0),
        (1, 4, 1, 600, 100),
        (3, 4, 2, 470, 33),
        # One program a head, which looks at more than it reads ahead; the interpreter takes them one by one.
        pytest.param(70, 4, 4, 300, 0, marks=pytest.mark.slow),
    ],
)
def test_attention_sees_every_position_up_to_its_own(rows, heads, kv_heads, slot, window, interpreted):
    from stockpot.native.triton_token import TokenLayer, attend

    generator = torch.Generator().manual_seed(0)
    room, width, none = slot + 40, 16, torch.zeros(1)
    flat = torch.randn(rows, 1, (heads + 2 * kv_heads) * width, generator=generator).bfloat16()
    keys, values = (
        torch.randn(rows, kv_heads, room + 1, width, generator=generator).bfloat16() for _ in range(2)
    )
    slots = (slot - torch.arange(rows) % 5)[:, None]
    shape = {"heads": heads, "kv_heads": kv_heads, "scale": 0.25, "window": window, "eps": (0.0, 0.0)}
    unused = dict.fromkeys(("qkv", "out", "up", "down", "first_gain", "second_gain"), none)
    layer = TokenLayer(**unused, **shape, q_gain=None, k_gain=None)
    found = attend(
        flat, layer, SlotCache(keys, values, torch.arange(rows)[:, None], slots, room), None
    ).float()
    queries, new_keys, new_values = (
        flat.float().view(rows, -1, width).split([heads, kv_heads, kv_heads], dim=1)
    )
    at = torch.arange(rows), slice(None), slots[:, 0]
    assert torch.equal(keys[at].float(), new_keys) and torch.equal(values[at].float(), new_values)
    keys, values = (one.float().repeat_interleave(heads // kv_heads, 1) for one in (keys, values))
    places = torch.arange(room + 1)
    seen = (places <= slots) & (places > slots - (window or room + 2))
    scores = (queries[:, :, None] @ keys.transpose(2, 3)).squeeze(2) * 0.25
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    wanted = (weights[:, :, None] @ values).reshape(rows, 1, -1)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_where_triton_cannot_build_torch_computes(interpreted, monkeypatch):
    from stockpot.model import token_layers as here
    from stockpot.native import triton_token

    model = model_of()
    asked = model.decoder.config, model.decoder.layers, torch.zeros(1, 1, 48, dtype=torch.bfloat16)
    assert here.token_layers(*asked) is not None

    def fails(*_, **__):
        raise RuntimeError("Failed to find C compiler.")

    here._computes_rightly.cache_clear()
    monkeypatch.setattr(triton_token, "multiply_added", fails)
    assert here.token_layers(*asked) is None
    here._computes_rightly.cache_clear()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("choices", KNOWN)
@pytest.mark.parametrize(("held", "rows", "compiles"), [(3, 1, False), (40, 1, False), (40, 3, True)])
def test_a_gpu_computes_them(choices, held, rows, compiles, unchecked):
    for ours, plain in errors("cuda", choices, held, rows, compiles=compiles):
        assert ours <= 2 * plain
