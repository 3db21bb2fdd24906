"""A stack's pass over its tokens as one call of our kernels: on CPUs, where nothing is learned and nobody watches.

Decides which stacks and calls go that way, and turns padded batches into texts one behind the other and back; padding is never
computed. Weights are read where torch keeps them: nothing is copied, and no change of them goes unseen. All is computed in
float32, with weights and caches of 16 bits, too, where torch would be slower.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.device import has_fast_bf16
from stockpot.model.attention import SelfAttention
from stockpot.model.cache import KVCache
from stockpot.model.config import StackConfig
from stockpot.model.layers import Block, FeedForward
from stockpot.model.linear import Linear
from stockpot.model.norms import LayerNorm, RMSNorm
from stockpot.native.build import TEXTS, is_compiled
from stockpot.native.calls import ACTIVATIONS, NormFacts
from stockpot.native.texts import (
    STORED,
    TextCall,
    TextKernels,
    TextLayer,
    TextMatrix,
    TextModel,
    TextQuestion,
    text_kernels,
)

if TYPE_CHECKING:
    from stockpot.model.stack import Stack
    from stockpot.model.transformer import Transformer

__all__ = ["described", "judge", "layer_by_layer", "read", "reads"]

LANES = 16  # sizes are multiples of these
LEAST_STATES = 32  # to be judged together
MUCH = 120_000_000  # products of a layer in a call from which processors gain from multiplying in bfloat16, if they can
WORTH_COMPILING = 5_000  # tokens read by a process from which kernels that were never compiled are
APART = 1e-3  # largest distance of a sound kernel's hidden states, whose size is about 1

_IS_ON: ContextVar[bool] = ContextVar("native_stack", default=True)
_seen = 0  # tokens that this process has read on a CPU


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Let stacks run in torch, layer by layer, inside the block."""
    before = _IS_ON.set(False)
    try:
        yield
    finally:
        _IS_ON.reset(before)


def reads(stack: Stack, tokens: int | None = None) -> bool:
    """Tell whether calls of a stack go through our kernels as things stand: its shape, its weights, and they themselves.

    Args:
        stack: what is to be run.
        tokens: of a call; None: of long ones.
    """
    first: Any = stack.layers[0]
    return (
        _IS_ON.get()
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _fits(stack.config)
        and all(map(_is_plain, stack.layers))
        and _pays(first.attention.qkv.weight.dtype, stack.config, tokens)
        and _kernels(type(stack)) is not None
    )


def read(
    stack: Stack,
    x: Float[Tensor, "batch seq dim"],
    *,
    documents: Int[Tensor, "batch seq"] | None = None,
    branches: Int[Tensor, "batch seq"] | None = None,
    has_gaps: bool = False,
    cache: KVCache | None = None,
) -> Float[Tensor, "batch seq dim"] | None:
    """Take what enters a stack's first layer through all of them; None: this call is torch's, and nothing was done.

    Arguments are those of the stack. Keys and values are written to the cache; to count them is the caller's.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return None
    if not torch.is_inference_mode_enabled():
        return None
    tokens = x.shape[0] * x.shape[1]
    _count(tokens)
    if not reads(stack, tokens) or (cache is not None and not _takes(cache)):
        return None
    texts, kernels = _texts(x, documents, branches, has_gaps, cache), _kernels(type(stack))
    if kernels is None or texts is None or not texts.starts[-1]:
        return None
    flat = x.reshape(-1, x.shape[2])
    hidden = (flat if texts.real is None else flat[texts.real.flatten()]).to(torch.float32, copy=True)
    _run(stack, kernels, hidden, texts, cache)
    if texts.real is None:
        return hidden.view(x.shape).to(x.dtype)
    out = x.new_zeros(x.shape)
    out[texts.real] = hidden.to(x.dtype)
    return out


def judge(
    model: Transformer, states: Float[Tensor, "count dim"], targets: Int[Tensor, " count"]
) -> tuple[Tensor, Tensor] | None:
    """Find each target's log-probability, and how far its logit stands above the best of the others ``(count,)``.

    None: the model's logits are made in another way than by one matrix, or our kernels are not there.
    """
    config, weight = model.config, model.output_weight
    suits = (
        states.shape[0] >= LEAST_STATES
        and (stack := model.decoder or model.encoder) is not None
        and reads(stack, states.shape[0])
        and config.predicts
        and not (config.logit_bias or config.logit_softcap or config.masked_head)
        and (model.head is None or type(model.head) is Linear)
        and _is_plain_weight(weight, weight.dtype)
    )
    kernels = _kernels(type(stack)) if suits and stack is not None else None
    if kernels is None:
        return None
    if int(targets.min()) < 0 or int(targets.max()) >= config.vocab_size:
        raise IndexError("an id is outside of the vocabulary")
    states = (states if config.logit_scale is None else states * config.logit_scale).float().contiguous()
    targets = targets.contiguous()
    log_probs, gaps = torch.empty(2, states.shape[0], dtype=torch.float64)
    question = TextQuestion(
        states.shape[0],
        torch.get_num_threads(),
        *(tensor.data_ptr() for tensor in (states, targets, log_probs, gaps)),
    )
    kernels.judge(_matrix(weight, None, []), question)
    return log_probs, gaps


def described(config: StackConfig, layers: ctypes.Array[TextLayer]) -> TextModel:
    """Return what the kernels are told of a stack of a shape with these layers."""
    return TextModel(
        layers=config.layers,
        dim=config.dim,
        heads=config.heads,
        kv_heads=config.key_heads,
        head_dim=config.head_width,
        rotary_dim=config.rotary_dim,
        ffn=config.ffn_width,
        activation=ACTIVATIONS[config.ffn],
        causal=config.attends == "causal",
        eps=config.norm_eps,
        attention_scale=config.attention_scale or config.head_width**-0.5,
        layer=layers,
    )


# --- what goes this way ---


def _fits(config: StackConfig) -> bool:
    return (
        config.attends in ("causal", "bidirectional")
        and config.position not in ("alibi", "relative")
        and config.norm_place in ("pre", "post")
        and not (config.parallel or config.cross)
        and config.attention_softcap is None
        and config.qk_norm != "full"
        and config.ffn in ACTIVATIONS
        and all(width % LANES == 0 for width in (config.dim, config.head_width, config.ffn_width))
    )


def _is_plain(block: nn.Module) -> bool:
    """Tell whether a layer is what `model.layers` makes: nothing adapted, split or watched."""
    if type(block) is not Block:
        return False
    attention, ffn = block.attention, block.ffn
    if type(attention) is not SelfAttention or type(ffn) is not FeedForward or attention.learned is not None:
        return False
    linears = (attention.qkv, attention.out, ffn.up, ffn.down)
    return (
        all(type(one) is Linear for one in linears)
        and all(_is_plain_weight(one.weight, attention.qkv.weight.dtype) for one in linears)
        and not any(one._forward_hooks or one._forward_pre_hooks for one in (block, attention, ffn, *linears))
    )


def _is_plain_weight(weight: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(weight) is nn.Parameter
        and weight.dtype == dtype
        and _stored(dtype) is not None
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.shape[1] % LANES == 0
    )


def _pays(dtype: torch.dtype, config: StackConfig, tokens: int | None) -> bool:
    """Tell whether float32 is at least as fast as what torch does with weights of a type."""
    if dtype != torch.bfloat16:
        return True
    is_little = tokens is not None and tokens * config.matrix_parameters() <= MUCH * config.layers
    return is_little or not has_fast_bf16(torch.device("cpu"))


def _stored(dtype: torch.dtype) -> int | None:
    """Return how the kernels number a type; None: they do not know it."""
    return STORED.get(str(dtype).removeprefix("torch."))


def _takes(cache: KVCache) -> bool:
    """Tell whether a cache is laid out as the kernels expect."""
    first = cache.keys[0]
    return (
        not (cache.cross or cache.is_recorded)
        and _stored(first.dtype) is not None
        and first.device.type == "cpu"
        and first.stride(3) == 1
        and first.stride(2) == first.shape[3]
    )


def _count(tokens: int) -> None:
    """Note how much was to be read."""
    global _seen
    _seen += tokens


def _kernels(kind: Callable[[StackConfig], Stack]) -> TextKernels | None:
    """Return the kernels, if they are there or worth compiling."""
    return _sound_kernels(kind) if is_compiled(TEXTS) or _seen >= WORTH_COMPILING else None


@functools.cache
def _sound_kernels(kind: Callable[[StackConfig], Stack]) -> TextKernels | None:
    """Return this machine's kernels if they are fast here and compute what torch does."""
    found = text_kernels()
    if found is None or not found.is_fast:
        return None
    config = StackConfig(layers=2, dim=64, heads=4, kv_heads=2, context=128)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad(), layer_by_layer():
        torch.manual_seed(0)
        stack = kind(config)
        x = torch.randn(2, 48, 64)
        wanted = stack(x)
        texts = _texts(x, None, None, False, None)
        assert texts is not None
        hidden = x.flatten(0, 1).clone()
        _run(stack, found, hidden, texts, None)
        assert stack.norm is not None
        is_sound = bool(((stack.norm(hidden.view_as(x)) - wanted).abs() < APART).all())
    if not is_sound:
        what = "what the C++ compiler made computes wrongly"
        warnings.warn(f"Texts are read by torch's own kernels, more slowly: {what}.", stacklevel=2)
    return found if is_sound else None


# --- texts one behind the other ---


class _Texts(NamedTuple):
    """Where texts lie among the tokens of a call.

    Attributes:
        starts: where each begins, and where the last ends ``(texts + 1,)``.
        real: which places of the batch are tokens ``(batch, seq)``; None: all.
        trunks: tokens of each text before it branches ``(texts,)``; None: nothing branches.
        branches: where in its text a token's branch begins ``(tokens,)``, 0 in the trunk.
        rows: row of the cache of each text ``(texts,)``; None without a cache.
        before: tokens that it holds already ``(texts,)``.
    """

    starts: Tensor
    real: Tensor | None = None
    trunks: Tensor | None = None
    branches: Tensor | None = None
    rows: Tensor | None = None
    before: Tensor | None = None


def _texts(
    x: Tensor, documents: Tensor | None, branches: Tensor | None, has_gaps: bool, cache: KVCache | None
) -> _Texts | None:
    """Find the texts of a call; None where documents or branches lie as nobody lays them."""
    batch, seq = x.shape[:2]
    if documents is None and branches is None:
        found = _Texts(torch.arange(batch + 1) * seq)
        return found if cache is None else found._replace(rows=torch.arange(batch), before=cache.lengths)
    whole = torch.ones(batch, seq, dtype=torch.int64) if documents is None else documents.long()
    real = whole != 0
    row, place = real.nonzero(as_tuple=True)
    number = whole[real] if cache is None else torch.ones_like(row)
    begins = torch.ones_like(row, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (number[1:] != number[:-1])
    starts = begins.nonzero().squeeze(1)
    if cache is None:
        close = (place[1:] - place[:-1] == 1) | begins[1:]
        once = torch.unique(torch.stack((row, number)), dim=1).shape[1] == starts.shape[0]
        if not once or not (has_gaps or bool(close.all())):
            return None
    found = _Texts(torch.cat((starts, starts.new_tensor([row.shape[0]]))), real)
    if cache is not None:
        return found._replace(rows=row[starts].contiguous(), before=cache.lengths[row[starts]].contiguous())
    return found if branches is None else _branched(found, begins, branches[real].long())


def _branched(found: _Texts, begins: Tensor, branches: Tensor) -> _Texts | None:
    """Say where texts branch; None unless trunks come first and branches in the order of their numbers."""
    turns = begins.clone()
    turns[1:] |= branches[1:] != branches[:-1]
    if not bool(((branches[1:] >= branches[:-1]) | begins[1:]).all()):
        return None
    index = torch.arange(branches.shape[0])
    text = begins.cumsum(0) - 1
    own = torch.where(turns, index, 0).cummax(0).values - found.starts[text]
    trunks = torch.zeros(found.starts.shape[0] - 1, dtype=torch.int64).index_add_(
        0, text, (branches == 0).long()
    )
    return found._replace(trunks=trunks, branches=torch.where(branches == 0, 0, own))


# --- what the kernels read ---


def _run(stack: Stack, kernels: TextKernels, hidden: Tensor, texts: _Texts, cache: KVCache | None) -> None:
    """Run all layers on hidden states ``(tokens, dim)``, in place."""
    config = stack.config
    longest = int(
        (texts.starts[1:] - texts.starts[:-1] + (0 if texts.before is None else texts.before)).max()
    )
    tables = {
        windowed: table.upto(longest, hidden, torch.float32).data_ptr()
        for windowed, table in stack._angles.items()
    }
    layers: Any = stack.layers
    kept: list[Tensor] = []
    facts = (TextLayer * config.layers)(
        *(
            _layer(block, tables.get(window is not None), window, kept)
            for block, window in zip(layers, config.windows, strict=True)
        )
    )
    model = described(config, facts)
    call = TextCall(
        texts=texts.starts.shape[0] - 1, threads=torch.get_num_threads(), hidden=hidden.data_ptr(),
        **{name: getattr(texts, name).data_ptr() for name in ("starts", "trunks", "branches", "rows", "before")
           if getattr(texts, name) is not None},
    )  # fmt: skip
    if texts.rows is not None and cache is not None:
        stores = [
            (ctypes.c_void_p * config.layers)(*(store.data_ptr() for store in stores))
            for stores in (cache.keys, cache.values)
        ]
        call.keys, call.values = map(ctypes.addressof, stores)
        call.type = _stored(cache.keys[0].dtype)
        call.row_stride, call.head_stride = cache.keys[0].stride()[:2]
    kernels.run(model, call)


def _layer(block: Block, rotary: int | None, window: int | None, kept: list[Tensor]) -> TextLayer:
    """Point to a layer's weights; floats that had to be made are kept for the call."""
    attention, ffn = block.attention, block.ffn
    has_norms = attention.qk_norm is not None
    layer = TextLayer(
        qkv=_matrix(attention.qkv.weight, attention.qkv.bias, kept),
        out=_matrix(attention.out.weight, attention.out.bias, kept),
        up=_matrix(ffn.up.weight, ffn.up.bias, kept),
        down=_matrix(ffn.down.weight, ffn.down.bias, kept),
        attention_norm=_norm(block.attention_norm, kept),
        ffn_norm=_norm(block.ffn_norm, kept),
        attention_post_norm=_norm(block.attention_post_norm, kept),
        ffn_post_norm=_norm(block.ffn_post_norm, kept),
        q_norm=_vector(attention.q_norm.weight, kept) if has_norms else None,
        k_norm=_vector(attention.k_norm.weight, kept) if has_norms else None,
        rotary=rotary,
        window=window or 0,
    )
    if ffn.is_gated:
        gate, up = ffn.up.weight.chunk(2)
        of_gate, of_up = (None, None) if ffn.up.bias is None else ffn.up.bias.chunk(2)
        layer.gate, layer.up = _matrix(gate, of_gate, kept), _matrix(up, of_up, kept)
    return layer


def _matrix(weight: Tensor, bias: Tensor | None, kept: list[Tensor]) -> TextMatrix:
    return TextMatrix(
        weight=weight.data_ptr(),
        type=_stored(weight.dtype),
        bias=_vector(bias, kept),
        outputs=weight.shape[0],
        inputs=weight.shape[1],
    )


def _norm(norm: RMSNorm | LayerNorm | None, kept: list[Tensor]) -> NormFacts:
    if norm is None:
        return NormFacts()
    facts = NormFacts(weight=_vector(norm.weight, kept))
    if isinstance(norm, LayerNorm):
        facts.bias, facts.centred = _vector(norm.bias, kept), 1
    return facts


def _vector(vector: Tensor | None, kept: list[Tensor]) -> int | None:
    """Point to a vector's floats."""
    if vector is None:
        return None
    if vector.dtype != torch.float32:
        kept.append(vector := vector.float())
    return vector.data_ptr()
