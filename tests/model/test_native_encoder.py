"""An encoder's pass in one call: the hidden states of the usual way, whatever is run together."""

from __future__ import annotations

import pytest
import torch

from stockpot.model.config import encoder
from stockpot.model.native_encoder import NativeEncoder
from stockpot.model.quantized import quantize
from stockpot.model.transformer import Transformer
from stockpot.native.texts import text_kernels

BERT = {
    "layers": 2, "dim": 64, "heads": 2, "ffn_dim": 208, "vocab_size": 50, "context": 160, "position": "learned", "norm": "layer",
    "norm_bias": True, "norm_place": "post", "embedding_norm": True, "final_norm": False, "qk_norm": None, "qkv_bias": True,
    "out_bias": True, "ffn": "gelu", "ffn_bias": True, "segment_types": 2, "zero_init": False,
}  # fmt: skip
SHAPES = {
    "as BERT": {},
    "of odd sizes": {"dim": 48, "heads": 3, "ffn_dim": 80},
    "tanh, no biases": {
        "ffn": "gelu_tanh",
        "qkv_bias": False,
        "out_bias": False,
        "ffn_bias": False,
        "norm_bias": False,
    },
    "relu, wide heads, no segments": {"ffn": "relu", "head_dim": 80, "segment_types": 0},
    "no norm of embeddings": {"embedding_norm": False, "embedding_scale": 2.0},
}
LENGTHS = (1, 2, 13, 16, 17, 24, 33, 159, 160, 1)
KINDS = ["floats", "pairs"]
NEAR = {
    "floats": 2e-5,
    "pairs": 4e-3,
}  # of hidden states of size 1; the second: what digits of 13 bits and more lose
pytestmark = pytest.mark.skipif(text_kernels() is None, reason="the kernels could not be compiled here")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param  # both run everywhere; pairs are faster on some processors only


def build(**choices):
    torch.manual_seed(0)
    model = Transformer(encoder(**{**BERT, **choices})).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(0.1 * torch.randn_like(param))
    return model


def rows(*lengths):
    dice = torch.Generator().manual_seed(1)
    return [torch.randint(50, (length,), generator=dice).tolist() for length in lengths]


def native(model, kind):
    return NativeEncoder(model, text_kernels(), in_pairs=kind == "pairs")


@torch.no_grad()
def usual(model, texts):
    return torch.cat([model(torch.tensor([row]), last=0).hidden[0] for row in texts])


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_are_those_of_the_usual_way(shape, kind):
    model, texts = build(**SHAPES[shape]), rows(*LENGTHS)
    assert NativeEncoder.fits(model)
    hidden, lengths = native(model, kind).run(texts)
    assert lengths.tolist() == list(LENGTHS)
    torch.testing.assert_close(hidden, usual(model, texts), rtol=0, atol=NEAR[kind])


def test_a_text_is_the_same_alone_and_among_others_and_with_any_number_of_threads(kind):
    fast, texts = native(build(), kind), rows(*LENGTHS * 3)
    together, _ = fast.run(texts)
    apart = torch.cat([fast.run([text])[0] for text in texts])
    assert torch.equal(together, apart)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(fast.run(texts)[0], together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_are_run_as_what_they_stand_for(bits, kind):
    model, texts = quantize(build(), bits), rows(5, 160)
    assert NativeEncoder.fits(model)
    hidden, _ = native(model, kind).run(texts)
    # the usual way rounds its inputs too, to 16 bits beside weights of 8 and to 8 beside weights of 4
    near = 4e-3 if bits == 8 else 0.1
    torch.testing.assert_close(hidden, usual(model, texts), rtol=0, atol=near)


def test_sums_that_are_as_large_as_they_can_be_keep_their_sign(kind):
    model = build(layers=1, ffn="relu")
    with torch.no_grad():
        block = model.encoder.layers[0]
        block.ffn.up.weight.zero_()
        block.ffn.up.bias.fill_(3.0)  # all inputs equal, and so are the weights: no sum is larger
        block.ffn.down.weight.fill_(0.5)
        block.ffn.down.weight[::2] = -0.5
    hidden, _ = native(model, kind).run(rows(7))
    torch.testing.assert_close(hidden, usual(model, rows(7)), rtol=0, atol=NEAR[kind])


@pytest.mark.parametrize("size", [1e-18, 1e-4, 1e4])
def test_numbers_of_any_size_keep_their_digits(size, kind):
    model = build(layers=1, embedding_norm=False)
    with torch.no_grad():
        for part in (model.embed, model.segments, model.encoder.positions):
            part.weight.mul_(size)
        model.encoder.layers[0].ffn.down.weight[:, 3] *= 100  # one far beyond the others of its span
    texts = rows(9, 30)
    torch.testing.assert_close(
        native(model, kind).run(texts)[0], usual(model, texts), rtol=0, atol=NEAR[kind]
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_not_hidden(wrong, kind):
    model = build()
    with torch.no_grad():
        model.encoder.layers[0].ffn.down.weight[5, 7] = wrong
    assert native(model, kind).run(rows(3))[0].isnan().any()


def test_texts_of_impossible_lengths_and_unknown_ids_are_refused():
    fast = native(build(), "floats")
    for lengths in ((3, 0), (161,)):
        with pytest.raises(ValueError, match="1 to 160 tokens"):
            fast.run(rows(*lengths))
    with pytest.raises(IndexError):
        fast.run([[3, 50]])


@pytest.mark.parametrize(
    "choices",
    [
        {"norm_place": "pre"},
        {"position": "rope"},
        {"ffn": "swiglu"},
        {"dim": 40},
        {"window": (8,)},
        {"norm": "rms", "norm_bias": False},
        {"final_norm": True},
    ],
    ids=str,
)
def test_other_shapes_do_not_fit(choices):
    assert not NativeEncoder.fits(build(**choices))


def test_a_layer_that_does_more_than_multiply_does_not_fit():
    model = build()

    class Adapted(type(model.encoder.layers[0].ffn.up)):
        pass

    model.encoder.layers[1].ffn.up.__class__ = Adapted
    assert not NativeEncoder.fits(model)
