"""Models of other makers on the command line: what inspect says of them, and fill on a BERT."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stockpot.bundle import Bundle, Embedding
from stockpot.cli.main import app
from stockpot.model.config import decoder, encoder
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import save


def ask(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat"] * 9, vocab_size=300)


def test_inspect_counts_the_files_of_a_model_in_shards(tokenizer, tmp_path):
    model = Transformer(decoder(layers=1, dim=32, heads=4, context=64, vocab_size=tokenizer.vocab_size))
    one = save(tmp_path / "one", Bundle(model, tokenizer))
    asked = ask("convert", one, tmp_path / "many", "--max-shard-gib", 2e-5, "--json")
    assert asked.exit_code == 0, asked.stderr
    files = [name for name in json.loads(asked.stdout)["files"] if name.endswith(".safetensors")]
    facts = json.loads(ask("inspect", tmp_path / "many", "--json").stdout)
    assert facts["files of weights"] == len(files) > 1
    assert facts["parameters"] == model.config.parameters()
    assert "files of weights" not in json.loads(ask("inspect", one, "--json").stdout)


def test_inspect_says_how_a_sentence_encoder_makes_vectors(tokenizer, tmp_path):
    settings = {"predicts": False, "masked_head": False, "logit_bias": False, "pair_classes": 0, "tied": True}
    config = encoder(layers=1, dim=32, heads=4, context=64, vocab_size=tokenizer.vocab_size, **settings)
    how = Embedding(pool="mean", normalise=True, most_tokens=48, prompt="query: ")
    folder = save(tmp_path / "m", Bundle(Transformer(config), tokenizer, embedding=how))
    facts = json.loads(ask("inspect", folder, "--json").stdout)
    said = "the mean of all tokens, of length 1, at most 48 tokens, behind 'query: '"
    assert facts["vectors of texts"] == said


@pytest.mark.golden
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fill_on_a_bert_says_what_transformers_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = tokenizers.normalizers.BertNormalizer()
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=names, show_progress=False)
    engine.train_from_iterator(["the cat sat on the mat and ran", "one two three"] * 5, trainer)
    engine.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {f"{name[1:-1].lower()}_token": name for name in names}
    transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **roles).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=engine.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    expected = transformers.pipeline("fill-mask", model=str(tmp_path))("The cat [MASK] on the mat")
    found = ask("fill", tmp_path, "The cat [MASK] on the mat", "--json")
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["gaps"][0]
    assert [row["token"] for row in rows] == [row["token_str"] for row in expected]
    for mine, yours in zip(rows, expected, strict=True):
        assert mine["probability"] == pytest.approx(yours["score"], abs=1e-5)
