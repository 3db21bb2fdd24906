"""Settings of models: defaults, refusals and counts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stockpot.errors import ConfigError
from stockpot.model.config import ModelConfig, StackConfig, decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer

COMBINATIONS = list(
    itertools.product(
        ("none", "learned", "sinusoidal", "rope", "alibi", "relative"),
        ("rms", "layer"),
        ("swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2", "silu"),
        ("decoder", "encoder", "encoder_decoder"),
    )
)
PLACES = ("pre", "post", "output", "sandwich")
BUILDERS = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder}


def count(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.usefixtures("unchecked")
def test_every_combination_of_parts_counts_runs_and_learns() -> None:
    ids = torch.arange(12).view(2, 6)
    for index, (position, norm, ffn, shape) in enumerate(COMBINATIONS):
        place = PLACES[(index + index // 24) % 4]  # each place meets each of the others
        config = BUILDERS[shape](
            layers=1, dim=16, heads=4, kv_heads=2, context=8, vocab_size=13, position=position, norm=norm,
            norm_bias=norm == "layer", norm_place=place, ffn=ffn, zero_init=False,
        )  # fmt: skip
        model = Transformer(config)
        assert count(model) == config.parameters(), config
        given = {"source": ids} if shape == "encoder_decoder" else {}
        out = model(ids, **given)
        loss = out.logits.logsumexp(-1).sum()
        if model.pair_head is not None:
            loss = loss + model.pair_logits(out.hidden).square().sum() + out.hidden[:, 0].sum()
        loss.backward()
        for name, value in model.named_parameters():
            touched = value.grad is not None and bool(value.grad.isfinite().all())
            assert touched, (name, config)


@pytest.mark.parametrize(
    "choices",
    [
        {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
        {"qk_norm": None},
        {"qk_norm": "full"},
        {"parallel": True},
        {"parallel": True, "shared_norm": True},
        {"embedding_norm": True, "final_norm": False},
        {"head_dim": 12},
        {"tied": False, "logit_bias": True},
        {"masked_head": True, "pair_classes": 3, "segment_types": 2},
        {"ffn_dim": 20, "window": (3, None)},
    ],
)
def test_parameters_are_counted_without_building(choices: dict[str, object]) -> None:
    config = decoder(layers=3, dim=32, heads=4, kv_heads=2, context=16, vocab_size=19, **choices)
    assert count(Transformer(config)) == config.parameters()


def test_default_decoder_needs_no_choice_at_all() -> None:
    config = decoder()
    stack = config.main
    assert config.shape == "decoder"
    assert (stack.position, stack.norm, stack.norm_place, stack.qk_norm) == ("rope", "rms", "pre", "head")
    assert (stack.ffn, stack.heads, stack.head_width, stack.ffn_width) == ("swiglu", 6, 64, 1024)
    assert config.tied
    assert not decoder(dim=2048).tied


@pytest.mark.parametrize(("dim", "heads"), [(384, 6), (200, 2), (250, 1), (300, 3), (1000, 10), (96, 1)])
def test_heads_that_nobody_chose_share_any_width_evenly(dim, heads) -> None:
    assert decoder(dim=dim).main.heads == heads
    assert decoder(dim=dim, position="alibi", qk_norm=None).main.heads >= heads


def test_wide_models_share_keys_among_heads() -> None:
    assert decoder(dim=768).main.kv_heads == 6
    assert decoder(dim=768, kv_heads=12).main.kv_heads == 12
    assert decoder(dim=256).main.key_heads == 4


def test_encoder_and_encoder_decoder_are_of_the_same_parts() -> None:
    reads, both = encoder(dim=128), encoder_decoder(dim=128)
    assert reads.shape == "encoder"
    assert both.shape == "encoder_decoder"
    assert reads.encoder is not None and both.encoder is not None and both.decoder is not None
    assert reads.encoder == both.encoder
    assert both.decoder == both.encoder.model_copy(update={"attends": "causal", "cross": True})


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"dim": 30, "heads": 4}, "multiple of heads"),
        ({"heads": 6, "kv_heads": 4}, "multiple of kv_heads"),
        ({"dim": 30, "heads": 6}, "even number"),
        ({"dim": 15, "heads": 5, "position": "sinusoidal"}, "even dim"),
        ({"window": (0,)}, "window"),
        ({"parallel": True, "norm_place": "post"}, "parallel"),
        ({"shared_norm": True}, "shared_norm"),
        ({"norm_bias": True}, "no bias"),
        ({"attends": "bidirectional"}, "causal"),
        ({"cross": True}, "cross-attention"),
        ({"layesr": 3}, "layers"),
        ({"position": "ropy"}, "position"),
    ],
)
def test_impossible_settings_are_refused_with_a_reason(choices: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        decoder(**{"layers": 2, "dim": 48, "heads": 6, **choices})


def test_a_model_without_stacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoder, a decoder"):
        ModelConfig()
    with pytest.raises(ConfigError, match="one width"):
        reader = StackConfig(dim=48, attends="bidirectional")
        ModelConfig(encoder=reader, decoder=StackConfig(dim=96, cross=True))
    with pytest.raises(ConfigError, match="single stack"):
        encoder_decoder(segment_types=2)


def test_settings_survive_writing_and_reading() -> None:
    config = encoder_decoder(dim=48, heads=6, window=(4, None), position="relative")
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("shape", ["decoder", "encoder", "encoder_decoder"])
def test_arithmetic_is_what_a_forward_pass_does(shape: str) -> None:
    config = BUILDERS[shape](layers=2, dim=32, heads=4, kv_heads=2, context=16, vocab_size=24, pair_classes=0)
    model, ids = Transformer(config), torch.zeros(1, 16, dtype=torch.long)
    given = {"source": ids} if shape == "encoder_decoder" else {}
    with FlopCounterMode(display=False) as counter, model.watch():
        model(ids, **given)
    assert counter.get_total_flops() == config.flops_per_token(16) * 16 / 3  # backward costs twice a forward


def test_a_window_saves_arithmetic() -> None:
    full, windowed = decoder(layers=2), decoder(layers=2, window=(64, None))
    assert full.flops_per_token(512) - windowed.flops_per_token(512) == 12 * 384 * (512 - 64)
