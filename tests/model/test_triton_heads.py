"""Our kernels between the product and attention compute what torch computes; on a CPU they run in Triton's interpreter."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stockpot.model import attention
from stockpot.model.attention import SelfAttention, View
from stockpot.model.config import decoder
from stockpot.model.kernels import HAS_TRITON
from stockpot.model.layers import Block
from stockpot.model.positions import rotate

EPS = 1e-5
# Rounding to 16 bits, for which the interpreter cuts bfloat16 off.
NEAR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
# heads, those of keys, width, values that are rotated
SHAPES = [
    (4, 2, 64, 64),
    (2, 2, 128, 128),
    (25, 5, 64, 64),
    (3, 1, 32, 32),
    (4, 4, 80, 80),
    (2, 1, 64, 32),
    (2, 1, 80, 32),
    (2, 1, 256, 64),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Share tokens out to few programs where the interpreter takes them one by one."""
    if HAS_TRITON and not torch.cuda.is_available():
        monkeypatch.setattr("stockpot.native.triton_heads.SHARE", 3)


def plain(flat, gains, angles, heads, eps=EPS):
    """Do with torch's operations what :func:`placed` does."""
    queries, keys = heads
    parts = flat.unflatten(2, (queries + 2 * keys, -1))
    both, values = parts.split([queries + keys, keys], dim=2)
    if gains is not None:
        both = F.rms_norm(both, both.shape[-1:], None, eps)
        both = both * torch.cat([gain.expand(many, -1) for gain, many in zip(gains, heads, strict=True)])
    if angles is not None:
        both = rotate(both, angles)
    return (*both.transpose(1, 2).split([queries, keys], dim=1), values.transpose(1, 2))


def inputs(shape, dtype, *, rows=2, seq=37, is_normed=True, turns="alike", device="cpu"):
    heads, kv_heads, width, turned = shape
    torch.manual_seed(0)
    flat = torch.randn(rows, seq, (heads + 2 * kv_heads) * width).to(device, dtype)
    gains = tuple(torch.randn(2, width).to(device).add(1)) if is_normed else None
    angles = None
    if turns is not None:
        angle = torch.rand(rows if turns == "by row" else 1, seq, 1, turned // 2) * 6
        angles = torch.cat((angle.cos(), angle.cos(), -angle.sin(), angle.sin()), dim=-1).to(device, dtype)
    return flat, gains, angles


def away(found, wanted):
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


def compared(shape, dtype, bend=lambda slope: slope, **how):
    """Return how far our results, slopes and gains' slopes are from those computed in float64, and ours."""
    from stockpot.native.triton_heads import placed

    flat, gains, angles = inputs(shape, dtype, **how)
    ours = [x.clone().requires_grad_() for x in (flat, *(gains or ()))]
    exact = [x.double().requires_grad_() for x in (flat, *(gains or ()))]
    found = placed(ours[0], tuple(ours[1:]) or None, angles, shape[:2], EPS)
    wide = None if angles is None else angles.double()
    wanted = plain(exact[0], tuple(exact[1:]) or None, wide, shape[:2])
    slopes = [bend(torch.randn_like(part)) for part in found]
    torch.autograd.backward(found, slopes)
    torch.autograd.backward(wanted, [slope.double() for slope in slopes])
    found, wanted = [*found, *(x.grad for x in ours)], [*wanted, *(x.grad for x in exact)]
    assert [x.shape for x in found] == [x.shape for x in wanted]
    return [away(one, other) for one, other in zip(found, wanted, strict=True)], found


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_and_slopes_are_those_of_torch(shape, dtype, interpreted):
    errors, found = compared(shape, dtype)
    assert max(errors) < NEAR[dtype]
    assert [x.dtype for x in found] == [dtype] * 4 + [torch.float32] * 2
    assert max(errors[4:]) < 1e-6  # the gains' slopes are sums in float32


@pytest.mark.parametrize("share", [1, 3, 40])
@pytest.mark.parametrize("seq", [1, 5, 61])
def test_however_the_tokens_are_shared_out(share, seq, interpreted, monkeypatch):
    from stockpot.native import triton_heads

    monkeypatch.setattr(triton_heads, "SHARE", share)
    for rows in (3, 50 if seq < 10 else 1):  # many short rows, of which a program has several
        how = {"rows": rows, "seq": seq, "turns": "by row"}
        assert max(compared((3, 1, 32, 32), torch.float32, Tensor.contiguous, **how)[0]) < 1e-6


@pytest.mark.parametrize(
    ("is_normed", "turns"), [(False, "alike"), (True, None), (True, "by row"), (False, "by row")]
)
@pytest.mark.parametrize("shape", [(4, 2, 64, 64), (2, 1, 80, 32)])
def test_norms_and_rotations_are_choices(shape, is_normed, turns, interpreted):
    assert max(compared(shape, torch.float32, is_normed=is_normed, turns=turns)[0]) < 1e-6


@pytest.mark.parametrize(
    "bend",
    [
        Tensor.contiguous,
        lambda slope: slope.transpose(1, 2).contiguous().transpose(1, 2),
        lambda slope: slope.mT.contiguous().mT,
        lambda slope: slope[:, :, :1].expand_as(slope),
        lambda slope: slope[:1, :1, :, :1].expand_as(slope),
        lambda slope: torch.cat((slope, slope), -1)[..., : slope.shape[-1]],
    ],
)
def test_slopes_lie_as_they_like(bend, interpreted):
    assert max(compared((4, 2, 32, 32), torch.float32, bend)[0]) < 1e-6


def test_every_run_adds_up_in_the_same_order(interpreted):
    first, second = (compared((4, 2, 64, 64), torch.bfloat16)[1] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_values_are_not_copied_and_heads_lie_as_attention_likes_them(interpreted):
    from stockpot.native.triton_heads import placed

    flat, gains, angles = inputs((4, 2, 64, 64), torch.bfloat16)
    queries, keys, values = placed(flat.requires_grad_(), gains, angles, (4, 2), EPS)
    assert values.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    assert all(part.transpose(1, 2).is_contiguous() for part in (queries, keys))


def test_no_tokens_are_no_fault(interpreted):
    from stockpot.native.triton_heads import placed

    flat, gains, angles = inputs((4, 2, 64, 64), torch.float32, rows=0)
    queries, *_ = placed(
        flat.requires_grad_(), [gain.requires_grad_() for gain in gains], angles, (4, 2), EPS
    )
    queries.sum().backward()
    assert queries.shape == (0, 4, 37, 64) and not gains[0].grad.any()


@pytest.mark.parametrize(
    ("is_known", "width", "how"),
    [
        (True, 64, {}),
        (True, 64, {"turned": 32}),
        (True, 64, {"is_normed": False}),
        (True, 64, {"turns": None}),
        (False, 64, {"turns": None, "is_normed": False}),  # nothing to do
        (False, 24, {}),
        (False, 64, {"turned": 24}),
        (False, 512, {}),
        (False, 64, {"dtype": torch.float64}),
    ],
)
def test_what_is_not_known_is_left_to_torch(is_known, width, how, interpreted):
    from stockpot.native.triton_heads import can_place

    how = dict(how)
    shape = (2, 1, width, how.pop("turned", width))
    flat, gains, angles = inputs(shape, how.pop("dtype", torch.float32), **how)
    assert can_place(flat, width, gains, angles) == is_known


def test_angles_of_another_type_are_left_to_torch(interpreted):
    from stockpot.native.triton_heads import can_place

    flat, gains, angles = inputs((2, 1, 64, 64), torch.bfloat16)
    assert can_place(flat, 64, gains, angles) and not can_place(flat, 64, gains, angles.float())


@pytest.mark.filterwarnings("ignore")  # what torch's own checks say
@pytest.mark.parametrize(("is_normed", "turns"), [(True, "alike"), (False, "by row"), (True, None)])
def test_torch_finds_nothing_wrong_with_the_operations(is_normed, turns, interpreted):
    from stockpot.native.triton_heads import head_slopes, placed_heads

    flat, gains, angles = inputs((4, 2, 32, 32), torch.float32, seq=9, is_normed=is_normed, turns=turns)
    gains = (None, None) if gains is None else gains
    torch.library.opcheck(placed_heads, (flat, *gains, angles, 4, 2, EPS))
    slopes = [part.transpose(1, 2) for part in placed_heads(flat, *gains, angles, 4, 2, EPS)]
    torch.library.opcheck(head_slopes, (flat, *gains, angles, *slopes, slopes[1], EPS))


# --- in a layer ---


@pytest.fixture
def launched(interpreted, monkeypatch):
    """Let layers on the CPU go the way of those that train on a GPU; return a list that counts the kernels."""
    monkeypatch.setattr(attention, "trains_here", lambda _: False)
    monkeypatch.setattr(attention, "trains_on_gpu", lambda _: torch.is_grad_enabled())
    return counted(monkeypatch)


def counted(monkeypatch):
    """Return a list that gets the numbers of heads whenever a kernel is launched."""
    from stockpot.native import triton_heads

    kernels = []

    def cut(*arguments, **how):
        kernels.append(arguments[1:3])
        return real(*arguments, **how)

    real = triton_heads._cut
    monkeypatch.setattr(triton_heads, "_cut", cut)
    return kernels


def layer_of(kind=SelfAttention, **choices):
    shape = {
        "layers": 1,
        "dim": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "context": 64,
        "vocab_size": 60,
    }
    torch.manual_seed(0)
    layer = kind(decoder(**shape | {"zero_init": False} | choices).decoder)
    for value in layer.parameters():
        torch.nn.init.normal_(value, float(value.ndim == 1), 0.2)
    return layer


def learned(layer, view, x, *, run=None):
    """Return a layer's result, and the slopes of its input and weights."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    out = (run or layer)(x, view)
    out.float().square().sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


def view_of(width=32, seq=21, *, rows=1, dtype=torch.float32, device="cpu"):
    angles = inputs((1, 1, width, width), dtype, rows=rows, seq=seq, turns="by row", device=device)[2]
    return View(causal=True, rotary=angles)


@pytest.mark.parametrize("choices", [{}, {"qk_norm": None}, {"qkv_bias": True}, {"attention_softcap": 5.0}])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_learns_the_same(choices, rows, launched):
    layer, x = layer_of(**choices), torch.randn(3, 21, 64)
    view = view_of(rows=rows)
    ours = learned(layer, view, x)
    again = learned(layer, view, x, run=lambda x, view: checkpoint(layer, x, view, use_reentrant=False))
    assert launched == [(4, 2)] * 5  # there and back, and in a checkpoint twice there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "trains_on_gpu", lambda _: False)
        wanted = learned(layer, view, x)
    for found in (ours, again):
        assert max(away(one, other.double()) for one, other in zip(found, wanted, strict=True)) < 1e-5


def test_an_answer_is_not_written_this_way(launched):
    layer, x, view = layer_of(), torch.randn(3, 21, 64), view_of()
    seen = []
    layer(x, view, seen=seen)
    with torch.no_grad():
        layer(x, view)
    assert len(seen) == 1 and not launched


@pytest.mark.parametrize("choices", [{"qk_norm": "full"}, {"head_dim": 24}])
def test_layers_that_the_kernels_do_not_know_go_another_way(choices, launched):
    layer = layer_of(**choices)
    learned(layer, view_of(layer.head_dim), torch.randn(3, 21, 64))
    assert not launched


@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_layer_learns_the_same(dtype, launched, unchecked):
    layer, near = layer_of(Block), 1e-5 if dtype == torch.float32 else 1e-2
    texts = [(torch.randn(2, seq, 64), view_of(seq=seq, dtype=dtype)) for seq in (21, 30)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        wanted = [learned(layer, view, x) for x, view in texts]
        torch._dynamo.reset()
        layer.compile(backend="aot_eager", fullgraph=True)
        found = [learned(layer, view, x) for x, view in texts]
    assert launched == [(4, 2)] * 8  # each text twice there and back
    for one, other in zip(chain(*found), chain(*wanted), strict=True):
        assert away(one, other.double()) < near


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchs_compiler_hands_slopes_over_as_attention_left_them(launched, unchecked, monkeypatch):
    from stockpot.native import triton_heads

    class Spied:
        def __getitem__(self, grid):
            def launch(*arguments, **how):
                strides.extend(slope.stride() for slope in arguments[4:7])
                real[grid](*arguments, **how)

            return launch

    strides, real = [], triton_heads._slopes
    monkeypatch.setattr(triton_heads, "_slopes", Spied())
    layer = layer_of(Block)
    torch._dynamo.reset()
    layer.compile()
    learned(layer, view_of(seq=24), torch.randn(2, 24, 64))
    # the heads of a token side by side: anything else is a copy that the compiler has made
    assert strides == [(24 * many * 32, 32, many * 32, 1) for many in (4, 2, 2)]


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(16, 8, 64, 64), *SHAPES])
def test_a_gpu_computes_heads_and_slopes(shape, dtype):
    for how in ({"turns": "by row"}, {"is_normed": False}, {"turns": None}):
        errors, found = compared(shape, dtype, rows=12, seq=1000, device="cuda", **how)
        assert max(errors[:4]) < max(NEAR[dtype], 2e-6) and max(errors) < max(NEAR[dtype], 1e-5)
        again = compared(shape, dtype, rows=12, seq=1000, device="cuda", **how)[1]
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("heads", [(16, 8, 64), (25, 5, 64), (8, 8, 128)])
def test_a_layer_on_a_gpu_learns_what_torchs_layer_learns(heads, compiles, unchecked, monkeypatch):
    shape = dict(zip(("heads", "kv_heads", "head_dim"), heads, strict=True))
    layer = layer_of(Block, dim=256, **shape).cuda()
    x = torch.randn(4, 500, 256, device="cuda")
    wide, short = (
        view_of(heads[2], 500, rows=4, dtype=dtype, device="cuda")
        for dtype in (torch.float32, torch.bfloat16)
    )
    kernels, ways = counted(monkeypatch), {}
    monkeypatch.setattr(attention, "trains_on_gpu", lambda _: False)
    exact = learned(layer, wide, x)
    for name, ours in (("torch", False), ("ours", True)):
        assert not kernels
        monkeypatch.setattr(attention, "trains_on_gpu", lambda _, ours=ours: ours)
        torch._dynamo.reset()
        if compiles:
            layer.compile(fullgraph=True)
        with torch.autocast("cuda", torch.bfloat16):
            ways[name] = learned(layer, short, x)
    assert kernels == [heads[:2]] * 2
    for one, other, best in zip(ways["ours"], ways["torch"], exact, strict=True):
        assert away(one, best.double()) < 2 * away(other, best.double())
