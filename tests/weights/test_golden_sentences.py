"""Sentence encoders: the vectors that sentence-transformers' steps give, and its files in both directions."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from golden import NEAR, reference
from test_golden_readers import BERT
from test_golden_tokenizers import write_folder

from stockpot.bundle import Bundle, Embedding
from stockpot.errors import CheckpointError, GenerationError
from stockpot.generate import vectors as vectors_of
from stockpot.generate.engine import Engine
from stockpot.model.native_encoder import NativeEncoder
from stockpot.native.texts import text_kernels
from stockpot.weights.store import load, save

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

TEXTS = [
    "The lazy dog.",
    "a",
    "the quick brown fox jumps over the lazy dog, again and again and again, the quick brown fox",
    "",
]
OLD_FLAGS = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}
KERNELS = text_kernels()
TYPE = "sentence_transformers.models."


def modules(*kinds):
    paths = ["", "1_Pooling", "2_Normalize", "3_Dense"]
    return [
        {"idx": number, "name": str(number), "path": paths[number], "type": TYPE + kind}
        for number, kind in enumerate(kinds)
    ]


def write(folder, steps, pooling, sizes=BERT, **files):
    """Write a BERT with its tokenizer, and the files that sentence-transformers keeps beside them."""
    write_folder(folder, "bert")
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    theirs = reference(transformers, "Bert", "Model", **{**sizes, "vocab_size": size})
    theirs.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(steps))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return theirs


def vectors(theirs, folder, texts, pool, *, normalise, most):
    """Do what the steps of sentence-transformers do, with transformers alone."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    if pool == "mean":
        found = (hidden * mask).sum(1) / mask.sum(1)
    elif pool == "cls":
        found = hidden[:, 0]
    else:
        found = hidden[torch.arange(len(texts)), batch["attention_mask"].sum(1) - 1]
    return torch.nn.functional.normalize(found) if normalise else found


CASES = {
    "minilm": (
        ("Transformer", "Pooling", "Normalize"),
        {**OLD_FLAGS, "pooling_mode_mean_tokens": True},
        "mean",
    ),
    "bge": (("Transformer", "Pooling", "Normalize"), {**OLD_FLAGS, "pooling_mode_cls_token": True}, "cls"),
    "plain": (("Transformer", "Pooling"), {**OLD_FLAGS, "pooling_mode_mean_tokens": True}, "mean"),
    "newer": (("Transformer", "Pooling"), {"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
}


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    kinds, pooling, pool = CASES[name]
    limits = {"max_seq_length": 16, "do_lower_case": False}
    theirs = write(tmp_path, modules(*kinds), pooling, sentence_bert_config=limits)
    bundle = load(tmp_path)
    normalise = "Normalize" in kinds
    assert bundle.embedding == Embedding(pool, normalise, 16)
    expected = vectors(theirs, tmp_path, TEXTS, pool, normalise=normalise, most=16)
    torch.testing.assert_close(Engine(bundle).embed(TEXTS), expected, **NEAR)
    assert len(bundle.encode(TEXTS[2])) > 16, "one text is cut"
    save(tmp_path / "again", bundle)
    again = load(tmp_path / "again")
    assert again.embedding == bundle.embedding
    torch.testing.assert_close(Engine(again).embed(TEXTS), expected, **NEAR)
    save(tmp_path / "again", Bundle(bundle.model, bundle.tokenizer))
    assert load(tmp_path / "again").embedding is None, "what another model had is not left behind"


@pytest.mark.skipif(
    KERNELS is None or not KERNELS.is_fast, reason="no kernels here, or none that are fast on this processor"
)
@pytest.mark.parametrize("name", CASES)
def test_vectors_of_our_kernels_are_those_of_sentence_transformers(name, tmp_path, monkeypatch):
    kinds, pooling, pool = CASES[name]
    sizes = {**BERT, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 208}
    theirs = write(tmp_path, modules(*kinds), pooling, sizes)
    bundle, normalise = load(tmp_path), "Normalize" in kinds
    assert NativeEncoder.fits(bundle.model)
    monkeypatch.setattr(vectors_of, "WORTH_COMPILING", 0)
    texts = [*TEXTS, " ".join(TEXTS[:3] * 9), *(" ".join(["fox"] * count) for count in range(1, 40, 3))]
    expected = vectors(theirs, tmp_path, texts, pool, normalise=normalise, most=64)
    assert vectors_of._sound_kernels() is not None
    ran = []
    monkeypatch.setattr(NativeEncoder, "run", noting(NativeEncoder.run, ran))
    torch.testing.assert_close(Engine(bundle).embed(texts), expected, **NEAR)
    assert ran == [len(texts)], "all of them in one call"
    assert len(bundle.encode(texts[4])) > bundle.context, "one is longer than the context and is cut"
    monkeypatch.setattr(NativeEncoder, "fits", staticmethod(lambda model: False))
    torch.testing.assert_close(Engine(bundle).embed(texts), expected, **NEAR)
    assert len(ran) == 1


def noting(run, ran):
    """Note how many texts are run."""

    def noted(self, rows):
        ran.append(len(rows))
        return run(self, rows)

    return noted


def test_a_pooling_asked_for_goes_before_the_models_own(tmp_path):
    kinds, pooling, _ = CASES["plain"]
    theirs = write(tmp_path, modules(*kinds), pooling)
    found = Engine(load(tmp_path)).embed(TEXTS, pool="cls")
    expected = vectors(theirs, tmp_path, TEXTS, "cls", normalise=False, most=64)
    torch.testing.assert_close(found, expected, **NEAR)


def test_a_prompt_stands_before_every_text(tmp_path):
    kinds, pooling, _ = CASES["minilm"]
    prompts = {"prompts": {"query": "the fox: ", "passage": ""}, "default_prompt_name": "query"}
    theirs = write(tmp_path, modules(*kinds), pooling, config_sentence_transformers=prompts)
    texts = [f"the fox: {text}" for text in TEXTS]
    expected = vectors(theirs, tmp_path, texts, "mean", normalise=True, most=64)
    bundle = load(tmp_path)
    torch.testing.assert_close(Engine(bundle).embed(TEXTS), expected, **NEAR)
    assert load(save(tmp_path / "again", bundle)).embedding == bundle.embedding


def test_an_encoder_of_sentences_fills_no_gaps(tmp_path):
    write(tmp_path, modules("Transformer", "Pooling"), CASES["plain"][1])
    bundle = load(tmp_path)
    with pytest.raises(GenerationError, match="vectors only"):
        Engine(bundle).fill("the [MASK] fox")


def test_a_decoder_without_output_matrix_makes_vectors_only(make_model, tokenizer):
    engine = Engine(Bundle(make_model(predicts=False), tokenizer))
    assert engine.embed(["the cat"], pool="last").shape == (1, 32)
    for ask in (lambda: engine.generate(["the cat"]), lambda: engine.score([("the", " cat")])):
        with pytest.raises(GenerationError, match="vectors only"):
            ask()


REFUSED = [
    ({"steps": modules("Transformer", "Pooling", "Normalize", "Dense")}, "Dense"),
    ({"steps": modules("Transformer")}, "the steps Transformer"),
    ({"steps": []}, "none"),
    ({"steps": {}}, "list"),
    ({"steps": [{"type": 3}]}, "type"),
    (
        {
            "steps": [
                {**modules("Transformer")[0], "path": "0_Transformer"},
                modules("Transformer", "Pooling")[1],
            ]
        },
        "own",
    ),
    ({"pooling": {**OLD_FLAGS, "pooling_mode_max_tokens": True}}, "max"),
    (
        {"pooling": {**OLD_FLAGS, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}},
        "max.*mean",
    ),
    ({"pooling": {"pooling_mode": ["cls", "mean"]}}, "cls.*mean"),
    ({"pooling": {"pooling_mode": 3}}, "3"),
    ({"pooling": []}, "object"),
    ({"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case"),
    ({"sentence_bert_config": {"max_seq_length": "long"}}, "max_seq_length"),
    ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "query"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_steps_we_do_not_have_are_refused(changes, told, tmp_path):
    kinds, pooling, _ = CASES["minilm"]
    write(tmp_path, **{"steps": modules(*kinds), "pooling": pooling, **changes})
    with pytest.raises(CheckpointError, match=told) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_a_step_cannot_lie_elsewhere(path, tmp_path):
    folder = tmp_path / "model"
    write(folder, modules("Transformer", "Pooling"), CASES["plain"][1])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    steps = modules("Transformer", "Pooling")
    steps[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)


def test_a_link_to_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "model"
    write(folder, modules("Transformer", "Pooling"), CASES["plain"][1])
    (folder / "1_Pooling" / "config.json").rename(tmp_path / "config.json")
    pathlib.Path(folder / "1_Pooling" / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)
