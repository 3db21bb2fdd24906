"""Feed-forwards, norms and the order of a layer's parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stockpot.model.attention import View
from stockpot.model.config import StackConfig
from stockpot.model.layers import Block, FeedForward
from stockpot.model.norms import LayerNorm, RMSNorm

PLAIN = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


def config(**choices: object) -> StackConfig:
    return StackConfig(**{"layers": 1, "dim": 16, "heads": 2, "position": "none", **choices})


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_feed_forwards_are_their_formula(kind: str) -> None:
    part, x = FeedForward(config(ffn=kind, ffn_bias=True)), torch.randn(2, 3, 16)
    up, down = part.up, part.down
    expected = PLAIN[kind](x @ up.weight.T + up.bias) @ down.weight.T + down.bias
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("kind", GATED)
def test_gated_feed_forwards_are_their_formula(kind: str) -> None:
    part, x = FeedForward(config(ffn=kind, ffn_dim=24)), torch.randn(2, 3, 16)
    gate, value = part.up.weight[:24], part.up.weight[24:]
    expected = (PLAIN[GATED[kind]](x @ gate.T) * (x @ value.T)) @ part.down.weight.T
    torch.testing.assert_close(part(x), expected)


def test_norms_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(RMSNorm(2, 0.0)(x), x / 12.5**0.5)  # mean square = (9 + 16) / 2
    torch.testing.assert_close(LayerNorm(2, 0.0, has_bias=True)(x), torch.tensor([[-1.0, 1.0]]))


def randomised(block: Block) -> Block:
    torch.manual_seed(0)
    with torch.no_grad():
        for value in block.parameters():
            value.copy_(torch.randn_like(value) * (0.3 if value.ndim > 1 else 1))
    return block


def test_the_four_places_of_a_norm() -> None:
    x, view = torch.randn(2, 3, 16), View(causal=True)
    blocks = {
        place: randomised(Block(config(norm_place=place))) for place in ("pre", "post", "output", "sandwich")
    }
    for place, b in blocks.items():

        def attention(h: torch.Tensor, b: Block = b) -> torch.Tensor:
            return b.attention(h, view)

        if place == "pre":
            h = x + attention(b.attention_norm(x))
            expected = h + b.ffn(b.ffn_norm(h))
        elif place == "post":
            h = b.attention_post_norm(x + attention(x))
            expected = b.ffn_post_norm(h + b.ffn(h))
        elif place == "output":
            h = x + b.attention_post_norm(attention(x))
            expected = h + b.ffn_post_norm(b.ffn(h))
        else:
            h = x + b.attention_post_norm(attention(b.attention_norm(x)))
            expected = h + b.ffn_post_norm(b.ffn(b.ffn_norm(h)))
        torch.testing.assert_close(b(x, view), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_parallel_layers_read_the_same_input(shared: bool) -> None:
    x, view = torch.randn(2, 3, 16), View(causal=True)
    b = randomised(Block(config(parallel=True, shared_norm=shared)))
    apart = b.attention_norm if shared else b.ffn_norm
    torch.testing.assert_close(b(x, view), x + b.attention(b.attention_norm(x), view) + b.ffn(apart(x)))
