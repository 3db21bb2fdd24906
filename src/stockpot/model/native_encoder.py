"""An encoder's forward pass over many texts as one call of our kernels.

Decides which models go that way and lays out what the kernels read: the layers' weights once more, as digits of 16 bits where the
processor multiplies those faster, else as floats. Padding is never computed. Nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.model.grids import NativeMatrix
from stockpot.model.linear import Linear
from stockpot.model.lookup import Embedding
from stockpot.model.native_stack import described
from stockpot.model.norms import LayerNorm
from stockpot.model.quantized import QuantizedEmbedding, QuantizedLinear
from stockpot.model.transformer import Transformer
from stockpot.native.calls import ACTIVATIONS, NormFacts
from stockpot.native.texts import TextCall, TextKernels, TextLayer, TextMatrix

__all__ = ["NativeEncoder"]

LANES = 16  # sizes are multiples of these


class NativeEncoder:
    """Runs an encoder's whole forward pass in one call.

    Args:
        model: what is run; its weights are copied, so a change of them goes unseen.
        kernels: what runs it.
        in_pairs: multiply digits of 16 bits, chosen anew for each 64 inputs, in place of floats.
    """

    def __init__(self, model: Transformer, kernels: TextKernels, *, in_pairs: bool) -> None:
        self._model, self._kernels, self._in_pairs = model, kernels, in_pairs
        self._kept: list[Tensor] = []  # memory that the kernels point into
        stack: Any = model.encoder
        config: StackConfig = stack.config
        self._layers = (TextLayer * config.layers)(*(self._layer(block) for block in stack.layers))
        positions = stack.positions.weight
        if model.segments is not None:
            positions = positions + model.segments.weight[0]
        self._facts = described(config, self._layers)
        self._facts.positions = self._pointer(positions)
        self._facts.embedding_norm = self._norm(stack.embedding_norm)

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Tell whether the kernels know this shape of model, and its parts are the usual ones."""
        if not _fits(model.config) or model.device.type != "cpu":
            return False
        stack: Any = model.encoder
        linears = [
            part
            for block in stack.layers
            for part in (block.attention.qkv, block.attention.out, block.ffn.up, block.ffn.down)
        ]
        return (
            type(model.embed) in (Embedding, nn.Embedding, QuantizedEmbedding)
            and all(type(part) in (Linear, QuantizedLinear) for part in linears)
            and all(block.attention.learned is None for block in stack.layers)
        )

    def run(self, rows: Sequence[Sequence[int]]) -> tuple[Float[Tensor, "tokens dim"], Tensor]:
        """Run texts; return their tokens' final hidden states, one text behind the other, and each text's length."""
        lengths = torch.tensor([len(row) for row in rows])
        context = self._model.config.main.context
        if int(lengths.max()) > context or int(lengths.min()) < 1:
            raise ValueError(f"texts have 1 to {context} tokens")
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        scale = self._model.config.embedding_scale
        hidden = self._model.embed(torch.tensor([id for row in rows for id in row])).float().contiguous()
        if scale is not None:
            hidden *= scale
        call = TextCall(len(rows), torch.get_num_threads(), starts.data_ptr(), hidden.data_ptr())
        self._kernels.run(self._facts, call)
        return hidden, lengths

    # --- what the kernels read ---

    def _layer(self, block: Any) -> TextLayer:
        return TextLayer(
            qkv=self._matrix(block.attention.qkv),
            out=self._matrix(block.attention.out),
            up=self._matrix(block.ffn.up),
            down=self._matrix(block.ffn.down),
            attention_post_norm=self._norm(block.attention_post_norm),
            ffn_post_norm=self._norm(block.ffn_post_norm),
        )

    def _matrix(self, layer: Linear | QuantizedLinear) -> TextMatrix:
        weight = _weight(layer).detach().float().contiguous()
        outputs, inputs = weight.shape
        panel, span = self._kernels.panel, self._kernels.span
        count = -(-outputs // panel)
        kind = torch.int16 if self._in_pairs else torch.float32
        room = self._keep(torch.empty(count * panel * inputs, dtype=kind))
        scales = self._keep(torch.empty(count * -(-inputs // span) * panel)) if self._in_pairs else None
        made = TextMatrix(
            weight=weight.data_ptr(),
            panels=room,
            scales=scales,
            bias=self._pointer(layer.bias),
            outputs=outputs,
            inputs=inputs,
        )
        self._kernels.pack(made, torch.get_num_threads())
        made.weight = None  # it may go
        return made

    def _norm(self, norm: LayerNorm | None) -> NormFacts:
        return (
            NormFacts()
            if norm is None
            else NormFacts(self._pointer(norm.weight), self._pointer(norm.bias), 1)
        )

    def _pointer(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float().clone())

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return int(self._kept[-1].data_ptr())


def _fits(config: ModelConfig) -> bool:
    stack = config.encoder
    if stack is None or config.decoder is not None:
        return False
    return (
        stack.attends == "bidirectional"
        and stack.position == "learned"
        and stack.norm == "layer"
        and stack.norm_place == "post"
        and not (stack.parallel or stack.final_norm)
        and set(stack.windows) == {None}
        and stack.qk_norm is None
        and stack.attention_softcap is None
        and stack.key_heads == stack.heads
        and stack.ffn in ACTIVATIONS
        and not stack.is_gated
        and all(width % LANES == 0 for width in (stack.dim, stack.head_width, stack.ffn_width))
    )


def _weight(layer: Linear | QuantizedLinear) -> Tensor:
    if isinstance(layer, Linear):
        return layer.weight
    matrix = layer.matrix
    if (
        isinstance(matrix, NativeMatrix) and matrix.lows is not None
    ):  # 4 bits: there is no other way to look at them
        return matrix.multiply(torch.eye(matrix.inputs)).T
    return matrix.rows(torch.arange(matrix.outputs))
