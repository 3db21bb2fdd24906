"""Tiny random encoders and encoder-decoders of the reference library give the same outputs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stockpot.model.config import ModelConfig, StackConfig, encoder
from stockpot.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

NEAR = {"atol": 1e-5, "rtol": 1e-5}  # float32 rounding on values of size about 1
BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
SIZES = {"layers": 2, "dim": 32, "heads": 4, "ffn_dim": 48, "vocab_size": 61}
POST_NORM = {
    "norm_place": "post",
    "norm": "layer",
    "norm_bias": True,
    "embedding_norm": True,
    "final_norm": False,
    "position": "learned",
    "ffn": "gelu",
    "ffn_bias": True,
    "qkv_bias": True,
    "out_bias": True,
    "qk_norm": None,
}


def liven(model: Any) -> Any:
    """Add noise to every weight of the reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1))
    return model.eval()


def both(new: dict[str, Tensor], old: dict[str, Tensor], mine: str, theirs: str) -> None:
    """Copy a weight and a bias."""
    new[f"{mine}.weight"], new[f"{mine}.bias"] = old[f"{theirs}.weight"], old[f"{theirs}.bias"]


def bert_layers(old: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """Map embeddings and layers of the BERT line."""
    new = {"embed.weight": old[f"{root}.embeddings.word_embeddings.weight"]}
    new["segments.weight"] = old[f"{root}.embeddings.token_type_embeddings.weight"]
    new["encoder.positions.weight"] = old[f"{root}.embeddings.position_embeddings.weight"]
    both(new, old, "encoder.embedding_norm", f"{root}.embeddings.LayerNorm")
    names = {
        "attention.out": "attention.output.dense",
        "attention_post_norm": "attention.output.LayerNorm",
        "ffn.up": "intermediate.dense",
        "ffn.down": "output.dense",
        "ffn_post_norm": "output.LayerNorm",
    }
    for i in range(2):
        here, there = f"encoder.layers.{i}", f"{root}.encoder.layer.{i}"
        for mine, theirs in names.items():
            both(new, old, f"{here}.{mine}", f"{there}.{theirs}")
        for kind in ("weight", "bias"):
            parts = [old[f"{there}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            new[f"{here}.attention.qkv.{kind}"] = torch.cat(parts)
    return new


def right_padded(batch: int, seq: int) -> tuple[Tensor, Tensor]:
    """Return ids and a mask whose second row ends early."""
    ids = torch.randint(3, 61, (batch, seq), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(batch, seq, dtype=torch.bool)
    mask[1, seq - 5 :] = False
    return ids, mask


def test_bert_with_both_its_heads() -> None:
    torch.manual_seed(0)
    theirs = liven(transformers.BertForPreTraining(transformers.BertConfig(**BERT)))
    old = dict(theirs.named_parameters())
    new = bert_layers(old, "bert")
    both(new, old, "pair_head.dense", "bert.pooler.dense")
    both(new, old, "pair_head.out", "cls.seq_relationship")
    both(new, old, "masked_head.dense", "cls.predictions.transform.dense")
    both(new, old, "masked_head.norm", "cls.predictions.transform.LayerNorm")
    new["logit_bias"] = old["cls.predictions.bias"]
    ours = Transformer(encoder(**SIZES, context=64, norm_eps=1e-12, **POST_NORM)).eval()
    ours.load_state_dict(new, strict=True)
    ids, mask = right_padded(2, 20)
    segments = (torch.arange(20) > 8).long().expand(2, 20)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long(), token_type_ids=segments)
        found = ours(ids, attention_mask=mask, segments=segments)
        torch.testing.assert_close(found.logits[mask], expected.prediction_logits[mask], **NEAR)
        torch.testing.assert_close(ours.pair_logits(found.hidden), expected.seq_relationship_logits, **NEAR)


def test_roberta_is_bert_whose_positions_start_at_two() -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        **{**BERT, "max_position_embeddings": 66}, pad_token_id=1, type_vocab_size=1
    )
    theirs = liven(transformers.RobertaForMaskedLM(config))
    old = dict(theirs.named_parameters())
    new = bert_layers(old, "roberta")
    new["encoder.positions.weight"] = new["encoder.positions.weight"][2:]
    both(new, old, "masked_head.dense", "lm_head.dense")
    both(new, old, "masked_head.norm", "lm_head.layer_norm")
    new["logit_bias"] = old["lm_head.bias"]
    choices = {**POST_NORM, "pair_classes": 0, "segment_types": 1, "norm_eps": 1e-12}
    ours = Transformer(encoder(**SIZES, context=64, **choices)).eval()
    ours.load_state_dict(new, strict=True)
    ids, mask = right_padded(2, 20)
    ids = ids.masked_fill(~mask, 1)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(ours(ids, attention_mask=mask).logits[mask], expected[mask], **NEAR)


def joined(old: dict[str, Tensor], root: str, parts: str) -> Tensor:
    """Put several projections below one another."""
    return torch.cat([old[f"{root}.{part}.weight"] for part in parts])


def t5_stack(old: dict[str, Tensor], stack: str, gated: bool) -> dict[str, Tensor]:
    """Map one stack of T5; the reference keeps the shared distance biases in the first layer."""
    new = {f"{stack}.norm.weight": old[f"{stack}.final_layer_norm.weight"]}
    first = f"{stack}.block.0.layer.0.SelfAttention"
    new[f"{stack}.relative.table.weight"] = old[f"{first}.relative_attention_bias.weight"]
    cross = stack == "decoder"
    for i in range(2):
        here, there = f"{stack}.layers.{i}", f"{stack}.block.{i}.layer"
        new[f"{here}.attention.qkv.weight"] = torch.cat(
            [old[f"{there}.0.SelfAttention.{p}.weight"] for p in "qkv"]
        )
        new[f"{here}.attention.out.weight"] = old[f"{there}.0.SelfAttention.o.weight"]
        new[f"{here}.attention_norm.weight"] = old[f"{there}.0.layer_norm.weight"]
        if cross:
            new[f"{here}.cross.q.weight"] = old[f"{there}.1.EncDecAttention.q.weight"]
            new[f"{here}.cross.kv.weight"] = torch.cat(
                [old[f"{there}.1.EncDecAttention.{p}.weight"] for p in "kv"]
            )
            new[f"{here}.cross.out.weight"] = old[f"{there}.1.EncDecAttention.o.weight"]
            new[f"{here}.cross_norm.weight"] = old[f"{there}.1.layer_norm.weight"]
        last = f"{there}.{1 + cross}"
        ups = ("wi_0", "wi_1") if gated else ("wi",)
        new[f"{here}.ffn.up.weight"] = torch.cat([old[f"{last}.DenseReluDense.{up}.weight"] for up in ups])
        new[f"{here}.ffn.down.weight"] = old[f"{last}.DenseReluDense.wo.weight"]
        new[f"{here}.ffn_norm.weight"] = old[f"{last}.layer_norm.weight"]
    return new


@pytest.mark.parametrize(("kind", "ffn"), [("relu", "relu"), ("gated-gelu", "geglu_tanh")])
def test_t5_first_edition_and_1_1(kind: str, ffn: str) -> None:
    gated = kind != "relu"
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=61,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj=kind,
        tie_word_embeddings=not gated,
        initializer_factor=0.1 if gated else 1.0,  # unscaled logits of size 10 are too large for 1e-5
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        decoder_start_token_id=0,
    )
    theirs = liven(transformers.T5ForConditionalGeneration(config))
    old = dict(theirs.named_parameters())
    new = {
        "embed.weight": old["shared.weight"],
        **t5_stack(old, "encoder", gated),
        **t5_stack(old, "decoder", gated),
    }
    if gated:
        new["head.weight"] = theirs.get_output_embeddings().weight  # a copy: some versions tie it
    parts = {
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "ffn_dim": 48,
        "position": "relative",
        "relative_buckets": 8,
        "relative_distance": 20,
        "attention_scale": 1.0,
        "qk_norm": None,
        "ffn": ffn,
    }
    whole = ModelConfig(
        vocab_size=61,
        encoder=StackConfig(**parts, attends="bidirectional"),
        decoder=StackConfig(**parts, cross=True),
        tied=not gated,
        logit_scale=None if gated else 32**-0.5,
    )
    ours = Transformer(whole).eval()
    ours.load_state_dict(new, strict=True)
    assert sum(p.numel() for p in ours.parameters()) == whole.parameters()
    source, source_mask = right_padded(2, 30)
    ids, _ = right_padded(2, 26)
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=source_mask.long(), decoder_input_ids=ids).logits
        found = ours(ids, source=source, source_mask=source_mask)
        assert expected.std() > 0.1
        torch.testing.assert_close(found.logits, expected, **NEAR)
        cache = ours.new_cache(2, 26)
        pieces = [ours(ids[:, :1], memory=found.memory, source_mask=source_mask, cache=cache).logits]
        pieces += [ours(ids[:, i : i + 1], cache=cache).logits for i in range(1, 26)]
        torch.testing.assert_close(torch.cat(pieces, 1), expected, **NEAR)
