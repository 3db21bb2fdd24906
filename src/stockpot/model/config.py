"""The settings of a model: what a stack of layers is made of, and how many stacks there are.

Decides every size and every choice of part, refuses impossible combinations before a weight exists, and
counts parameters and arithmetic without building anything. It knows no file format and no model family: a
family is a set of values of these fields.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from stockpot.config import Settings

__all__ = ["ModelConfig", "RopeScaling", "StackConfig", "decoder", "encoder", "encoder_decoder"]

Attending = Literal["causal", "bidirectional", "prefix"]
Position = Literal["none", "learned", "sinusoidal", "rope", "alibi", "relative"]
Norm = Literal["rms", "layer"]
NormPlace = Literal["pre", "post", "output", "sandwich"]
FeedForwardKind = Literal[
    "swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu"
]
GATED = frozenset({"swiglu", "geglu", "geglu_tanh"})
ABSOLUTE = frozenset({"learned", "sinusoidal"})


class RopeScaling(Settings):
    """How rotary positions are stretched beyond the context a model was trained with."""

    kind: Literal["linear", "llama3", "yarn"] = Field("linear", description="linear · llama3 · yarn")
    factor: float = Field(ge=1.0, description="how many times longer the context becomes")
    original_context: int = Field(8192, ge=1, description="the context before stretching (llama3, yarn)")
    low_freq_factor: float = Field(
        1.0, gt=0, description="llama3: below this many turns a frequency is fully stretched"
    )
    high_freq_factor: float = Field(
        4.0, gt=0, description="llama3: above this many turns a frequency is left alone"
    )
    beta_fast: float = Field(32.0, gt=0, description="yarn: turns above which a frequency is left alone")
    beta_slow: float = Field(1.0, gt=0, description="yarn: turns below which a frequency is fully stretched")
    attention_factor: float | None = Field(
        None, description="yarn: scale of cos and sin; None computes it from factor"
    )

    @model_validator(mode="after")
    def _fits(self) -> RopeScaling:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor = {self.low_freq_factor} must be below high_freq_factor = {self.high_freq_factor}"
            )
        return self


class StackConfig(Settings):
    """One stack of equal layers."""

    layers: int = Field(6, ge=1, description="number of layers")
    dim: int = Field(384, ge=1, description="width of the residual stream")
    heads: int = Field(6, ge=1, description="attention heads")
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values, shared by groups; None = heads"
    )
    head_dim: int | None = Field(None, ge=1, description="width of a head; None = dim / heads")
    ffn_dim: int | None = Field(
        None, ge=1, description="inner width of the feed-forward; None = 8/3 dim gated, 4 dim plain"
    )
    context: int = Field(
        512, ge=1, description="maximum sequence length in training; a hard limit for learned positions"
    )

    attends: Attending = Field(
        "causal", description="causal · bidirectional · prefix (segment 0 sees itself both ways)"
    )
    cross: bool = Field(False, description="attend to an encoder's memory too")
    window: tuple[int | None, ...] = Field(
        (None,),
        min_length=1,
        description="tokens a layer looks back, itself included; repeated over the layers; None = all",
    )

    position: Position = Field("rope", description="none · learned · sinusoidal · rope · alibi · relative")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    rope_local_theta: float | None = Field(None, gt=0, description="another base for layers with a window")
    rope_fraction: float = Field(1.0, gt=0, le=1, description="share of each head that is rotated")
    rope_scaling: RopeScaling | None = Field(
        None, description="stretching of rotary positions (layers without a window)"
    )
    relative_buckets: int = Field(32, ge=2, description="relative: number of distance buckets")
    relative_distance: int = Field(
        128, ge=2, description="relative: distance from which all share the last bucket"
    )

    norm: Norm = Field("rms", description="rms · layer")
    norm_bias: bool = Field(False, description="layer norm has a bias")
    norm_eps: float = Field(1e-6, gt=0, description="added to the variance")
    norm_place: NormPlace = Field(
        "pre", description="pre · post (after the sum) · output (of the sublayer) · sandwich"
    )
    embedding_norm: bool = Field(False, description="normalise the embeddings")
    final_norm: bool = Field(True, description="normalise the last hidden states")
    parallel: bool = Field(
        False, description="attention and feed-forward read the same input and are added together"
    )
    shared_norm: bool = Field(False, description="parallel: one norm for both")

    qk_norm: Literal["head", "full"] | None = Field(
        "head", description="normalise queries and keys per head or as a whole"
    )
    qkv_bias: bool = Field(False, description="biases of queries, keys and values")
    out_bias: bool = Field(False, description="bias of attention's output projection")
    attention_scale: float | None = Field(
        None, gt=0, description="factor on query·key; None = head_dim ** -0.5"
    )
    attention_softcap: float | None = Field(
        None, gt=0, description="cap · tanh(score / cap) on attention scores"
    )

    ffn: FeedForwardKind = Field(
        "swiglu",
        description="swiglu · geglu · geglu_tanh · gelu · gelu_tanh · quick_gelu · relu · relu2 · silu",
    )
    ffn_bias: bool = Field(False, description="biases of the feed-forward")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability in training")

    @model_validator(mode="after")
    def _fits(self) -> StackConfig:
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(
                f"dim {self.dim} is not a multiple of heads {self.heads}; set head_dim or change one of them"
            )
        if self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.key_heads}")
        if self.position == "rope" and (self.rotary_dim % 2 or self.rotary_dim < 2):
            raise ValueError(f"rope rotates {self.rotary_dim} values of a head; it needs an even number")
        if self.position == "sinusoidal" and self.dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim, not {self.dim}")
        if any(width is not None and width < 1 for width in self.window):
            raise ValueError("a window is at least 1 token wide (None = no window)")
        if self.parallel and (self.norm_place != "pre" or self.cross):
            raise ValueError("parallel layers need norm_place='pre' and no cross-attention")
        if self.shared_norm and not self.parallel:
            raise ValueError("shared_norm belongs to parallel layers")
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("an rms norm has no bias; choose norm='layer'")
        return self

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.dim // self.heads

    @property
    def rotary_dim(self) -> int:
        """How many values of each head are rotated."""
        return int(self.head_width * self.rope_fraction)

    @property
    def ffn_width(self) -> int:
        """Inner width of the feed-forward; an automatic one is a multiple of 64, or of 8 in tiny models."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        if self.ffn not in GATED:
            return 4 * self.dim
        step = 64 if self.dim >= 128 else 8
        return math.ceil(8 * self.dim / 3 / step) * step

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.ffn in GATED

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of every layer."""
        return tuple(self.window[i % len(self.window)] for i in range(self.layers))

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over ``dim``."""
        return self.dim * (2 if self.norm_bias else 1)

    def parameters(self) -> int:
        """Count the stack's parameters without building it."""
        position = {"learned": self.context * self.dim, "relative": self.relative_buckets * self.heads}
        ends = int(self.embedding_norm) + int(self.final_norm)
        return (
            self.layers * self._layer_parameters()
            + ends * self.norm_parameters
            + position.get(self.position, 0)
        )

    def matrix_parameters(self) -> int:
        """Count the weights that every token is multiplied with."""
        inner, kv = self.heads * self.head_width, self.key_heads * self.head_width
        attention = 2 * self.dim * (inner + kv) * (2 if self.cross else 1)
        return self.layers * (attention + self.dim * self.ffn_width * (3 if self.is_gated else 2))

    def _layer_parameters(self) -> int:
        inner, kv = self.heads * self.head_width, self.key_heads * self.head_width
        attentions = 2 if self.cross else 1
        biases = (inner + 2 * kv) * self.qkv_bias + self.dim * self.out_bias
        qk = {"head": 2 * self.head_width, "full": inner + kv, None: 0}[self.qk_norm]
        ffn_biases = (self.ffn_width * (2 if self.is_gated else 1) + self.dim) * self.ffn_bias
        norms = (1 if self.shared_norm else attentions + 1) * (2 if self.norm_place == "sandwich" else 1)
        return (
            self.matrix_parameters() // self.layers
            + attentions * (biases + qk)
            + ffn_biases
            + norms * self.norm_parameters
        )


class ModelConfig(Settings):
    """A whole model: an encoder, a decoder, or both."""

    vocab_size: int = Field(8192, ge=1, description="number of token ids")
    encoder: StackConfig | None = Field(None, description="the stack that reads")
    decoder: StackConfig | None = Field(None, description="the stack that writes")
    tied: bool = Field(True, description="the output matrix is the embedding matrix")
    predicts: bool = Field(
        True, description="hidden states become logits; False: there is no output matrix, only hidden states"
    )
    embedding_scale: float | None = Field(None, gt=0, description="factor on token embeddings; None = 1")
    logit_scale: float | None = Field(
        None, gt=0, description="factor on the hidden states before the output matrix; None = 1"
    )
    logit_softcap: float | None = Field(None, gt=0, description="cap · tanh(logit / cap) on logits")
    logit_bias: bool = Field(False, description="one bias per vocabulary item")
    masked_head: bool = Field(
        False, description="a dense layer and a norm before the output matrix, as in BERT"
    )
    pair_classes: int = Field(
        0, ge=0, description="classes of the head on the first token (2 = next sentence); 0 = none"
    )
    value_head: bool = Field(False, description="one number per position, as a reward or a value")
    segment_types: int = Field(
        0, ge=0, description="kinds of segment embeddings (sentence A and B); 0 = none"
    )
    init_std: float | None = Field(
        None, gt=0, description="spread of initial embeddings; None = 1 / sqrt(dim)"
    )
    zero_init: bool = Field(
        True, description="output projections start at zero, so that every layer starts as the identity"
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.encoder is None and self.decoder is None:
            raise ValueError("a model needs an encoder, a decoder, or both")
        if self.encoder is not None and (self.encoder.cross or self.encoder.attends != "bidirectional"):
            raise ValueError("an encoder is bidirectional and has no cross-attention")
        if self.decoder is not None and self.decoder.attends == "bidirectional":
            raise ValueError("a decoder is causal (attends='causal' or 'prefix')")
        if self.decoder is not None and self.decoder.cross != (self.encoder is not None):
            raise ValueError("a decoder has cross-attention exactly when there is an encoder")
        if self.encoder is not None and self.decoder is not None and self.encoder.dim != self.decoder.dim:
            raise ValueError(
                f"encoder and decoder share one width, not {self.encoder.dim} and {self.decoder.dim}"
            )
        if self.value_head and self.shape != "decoder":
            raise ValueError("a value head belongs to a decoder")
        if not self.predicts and (self.masked_head or self.logit_bias or not self.tied):
            raise ValueError(
                "a model that makes no logits has no masked_head, no logit_bias and no own matrix"
            )
        if self.segment_types and self.encoder is not None and self.decoder is not None:
            raise ValueError("segment embeddings exist for a single stack only")
        return self

    @property
    def main(self) -> StackConfig:
        """The stack whose hidden states become logits."""
        stack = self.decoder or self.encoder
        assert stack is not None  # held by the validator
        return stack

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.main.dim

    @property
    def context(self) -> int:
        """Maximum sequence length in training."""
        return self.main.context

    @property
    def shape(self) -> Literal["decoder", "encoder", "encoder_decoder"]:
        """Which of the three kinds of model this is."""
        if self.decoder is None:
            return "encoder"
        return "decoder" if self.encoder is None else "encoder_decoder"

    def parameters(self) -> int:
        """Count all parameters without building the model."""
        head = 0 if self.tied else self.vocab_size * self.dim
        head += self.vocab_size * self.logit_bias
        if self.masked_head:
            head += self.dim * (self.dim + 1) + self.main.norm_parameters
        if self.pair_classes:
            head += self.dim * (self.dim + 1) + (self.dim + 1) * self.pair_classes
        head += self.dim * self.value_head
        stacks = sum(stack.parameters() for stack in (self.encoder, self.decoder) if stack is not None)
        return (self.vocab_size + self.segment_types) * self.dim + head + stacks

    def flops_per_token(self, context: int | None = None) -> float:
        """Estimate the arithmetic of training on one token of a text as long as ``context``, every label counted.

        An encoder-decoder counts one source and one target token.
        """
        length = context or self.context
        return self.training_flops([length], [length] if self.shape == "encoder_decoder" else []) / length

    def training_flops(
        self,
        lengths: Sequence[int],
        sources: Sequence[int] = (),
        counted: int | None = None,
        *,
        trained: float = 1.0,
    ) -> float:
        """Estimate the arithmetic of training on texts, forward and backward.

        Counts 6 operations per weight of a matrix product (4 where it is frozen; embedding look-ups are free, the
        output matrix is not) and 12 · layers · heads · head_dim · length for attention, with no discount for the
        causal half, so that figures compare with other projects'. A windowed layer counts its window.

        Args:
            lengths: tokens of each text.
            sources: tokens of each text's source, for an encoder-decoder.
            counted: labels that count, for which logits are needed; none: as many as tokens.
            trained: share of the weights that are trained.

        Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        """
        labels = sum(lengths) if counted is None else counted
        weighed = labels * (self.vocab_size * self.dim * self.predicts + self.dim**2 * self.masked_head)
        attended = 0
        for stack, own in ((self.encoder, sources or lengths), (self.decoder, lengths)):
            if stack is None:
                continue
            seen = sum(size * min(size, width or size) for width in stack.windows for size in own)
            if stack.cross:
                seen += stack.layers * sum(map(operator.mul, own, sources))
            weighed += stack.matrix_parameters() * sum(own)
            attended += stack.heads * stack.head_width * seen
        return (4.0 + 2.0 * trained) * weighed + 12.0 * attended


def _sizes(layers: int, dim: int, heads: int | None, context: int, choices: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the caller left open: heads 64 wide or a little more, half as many for keys and values in wide models."""
    heads = heads or _heads(dim, choices)
    sizes: dict[str, Any] = {"layers": layers, "dim": dim, "heads": heads, "context": context}
    if heads >= 8 and heads % 2 == 0:
        sizes["kv_heads"] = heads // 2
    if context > 8192:
        sizes["rope_theta"] = 500_000.0
    return {**sizes, **choices}


def _heads(dim: int, choices: dict[str, Any]) -> int:
    """Choose the number of heads, such that they share a width evenly: each of an even width where it is rotated."""
    most = max(1, dim // 64)
    if "head_dim" in choices:
        return most
    step = 2 if choices.get("position", "rope") == "rope" else 1
    return next((count for count in range(most, 0, -1) if dim % (step * count) == 0), most)


def _split(choices: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate a stack's choices from the whole model's; the stack refuses unknown names."""
    whole = {name: value for name, value in choices.items() if name in ModelConfig.model_fields}
    return whole, {name: value for name, value in choices.items() if name not in whole}


def _whole(dim: int, stack: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Give the model-wide defaults that follow from a size or a choice."""
    defaults: dict[str, Any] = {"tied": dim < 2048}
    if stack.get("position") == "sinusoidal":
        defaults["embedding_scale"] = math.sqrt(dim)  # the fixed waves have size 1; Vaswani et al. 2017, §3.4
    return {**defaults, **whole}


def decoder(
    *,
    layers: int = 6,
    dim: int = 384,
    heads: int | None = None,
    context: int = 512,
    vocab_size: int = 8192,
    **choices: Any,
) -> ModelConfig:
    """Describe a decoder (GPT): rotary positions, RMS pre-norm, QK-norm, SwiGLU, no biases.

    ``choices`` are any further fields of :class:`StackConfig` or :class:`ModelConfig`.
    """
    whole, stack = _split(choices)
    config = StackConfig(**_sizes(layers, dim, heads, context, stack))
    return ModelConfig(vocab_size=vocab_size, decoder=config, **_whole(dim, stack, whole))


def encoder(
    *,
    layers: int = 6,
    dim: int = 384,
    heads: int | None = None,
    context: int = 512,
    vocab_size: int = 8192,
    **choices: Any,
) -> ModelConfig:
    """Describe an encoder (BERT) of the same parts, with heads for masked tokens and for sentence pairs."""
    whole, stack = _split(choices)
    config = StackConfig(**_sizes(layers, dim, heads, context, {"attends": "bidirectional", **stack}))
    heads_of = {"masked_head": True, "logit_bias": True, "pair_classes": 2, "segment_types": 2}
    return ModelConfig(vocab_size=vocab_size, encoder=config, **{**heads_of, **_whole(dim, stack, whole)})


def encoder_decoder(
    *,
    layers: int = 6,
    dim: int = 384,
    heads: int | None = None,
    context: int = 512,
    vocab_size: int = 8192,
    **choices: Any,
) -> ModelConfig:
    """Describe an encoder-decoder (T5) of the same parts: ``layers`` in each stack."""
    whole, stack = _split(choices)
    sizes = _sizes(layers, dim, heads, context, stack)
    reader = StackConfig(**{**sizes, "attends": "bidirectional"})
    writer = StackConfig(**{**sizes, "cross": True})
    return ModelConfig(vocab_size=vocab_size, encoder=reader, decoder=writer, **_whole(dim, stack, whole))
