"""Pretraining through the front door: every objective, what is left behind, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

import stockpot as sp
from stockpot.data.corrupt import ObjectiveName
from stockpot.run import Run

OBJECTIVES = ObjectiveName.__args__
SHAPES = {"masked": "encoder", "pairs": "encoder", "span": "encoder_decoder"}


def config(pantry, **choices):
    loop = {"steps": 4, "batch_tokens": 256, "log_every": 1, "dtype": "float32"}
    loop |= {"validate_every": 2, "checkpoint_every": 2}
    loop |= choices.pop("loop", {})
    return sp.PretrainConfig(
        **{
            "data": str(pantry / "corpus.jsonl"),
            "tokenizer": str(pantry / "tok"),
            "size": 1,
            "context": 64,
            "val_tokens": 512,
            "loop": sp.LoopConfig(**loop),
            **choices,
        }
    )


@pytest.fixture(scope="module", params=OBJECTIVES)
def run(request, pantry, tmp_path_factory):
    """One finished run of each objective."""
    out = tmp_path_factory.mktemp("runs") / request.param
    return sp.pretrain(config(pantry, objective=request.param), out=out)


def test_every_objective_trains_the_shape_it_is_for(run):
    assert Run.open(run.path).status == "done"
    bundle = sp.load(run.path)
    assert bundle.model.config.shape == SHAPES.get(run.path.name, "decoder")
    assert all(math.isfinite(value) for _, value in run.series("val/loss"))
    assert len(run.series("val/loss")) == 2
    if run.path.name == "pairs":
        assert 0 <= run.last("val/pair_accuracy") <= 1
    if run.path.name == "prefix":
        assert bundle.model.config.main.attends == "prefix"


def test_a_run_keeps_what_the_model_writes_at_each_validation(run):
    names = sorted(path.name for path in (run.path / "samples").iterdir())
    assert names == ["step-000002.txt", "step-000004.txt"]
    text = (run.path / "samples" / names[-1]).read_text(encoding="utf-8")
    assert len(text.split("\n\n")) == 3
    assert ("[" if SHAPES.get(run.path.name) == "encoder" else "written") in text


def test_a_run_ends_with_a_page_about_itself(run):
    page = (run.path / "report.md").read_text(encoding="utf-8")
    assert page.startswith(f"# pretrain: {run.path.name}\n")
    assert f"| validation loss | {run.series('val/loss')[0][1]:.4g} |" in page
    assert "* `size = 1`" in page
    assert "report.svg" in page
    assert "<svg" in (run.path / "report.svg").read_text(encoding="utf-8")
    sample = (run.path / "samples" / "step-000004.txt").read_text(encoding="utf-8")
    assert sample.rstrip() in page


def test_samples_do_not_change_the_training(pantry, tmp_path):
    """Sampling draws random numbers of its own: more validations, the same weights."""
    dropout = sp.decoder(layers=1, dim=32, heads=1, context=64, dropout=0.2)
    runs = [
        sp.pretrain(
            config(pantry, size=None, model=dropout, loop={"validate_every": every}),
            out=tmp_path / str(every),
        )
        for every in (1, 4)
    ]
    assert runs[0].series("train/loss") == runs[1].series("train/loss")
    weights = [(one.path / "checkpoints/step-000004/model.safetensors").read_bytes() for one in runs]
    assert weights[0] == weights[1]


# --- data ---


def test_what_to_do_with_text_that_is_not_utf8_is_a_setting(pantry, tmp_path, caplog):
    lines = (pantry / "corpus.jsonl").read_bytes().replace(b"village", b"vill\xffge")
    (tmp_path / "odd.jsonl").write_bytes(lines)
    odd = {"data": str(tmp_path / "odd.jsonl")}
    with pytest.raises(sp.DataError, match=r"odd\.jsonl.*UTF-8"):
        sp.pretrain(config(pantry, **odd), out=tmp_path / "strict")
    assert not (tmp_path / "strict").exists()
    sp.pretrain(
        config(pantry, **odd, reading=sp.ReadConfig(encoding_errors="replace")), out=tmp_path / "replaced"
    )
    assert "became �" in caplog.text


def test_shards_are_a_corpus(pantry, texts, tmp_path):
    from stockpot.data.shards import write_shards

    tokenizer = sp.Tokenizer.load(pantry / "tok")
    write_shards(texts, tokenizer, tmp_path / "shards")
    one = sp.pretrain(config(pantry, data=str(tmp_path / "shards")), out=tmp_path / "one")
    other = sp.pretrain(config(pantry), out=tmp_path / "other")
    assert one.series("train/loss") == other.series("train/loss")


def test_the_manifest_says_what_was_read(pantry, tmp_path):
    run = sp.pretrain(config(pantry), out=tmp_path / "r")
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"][0]["path"] == str(pantry / "corpus.jsonl")
    assert manifest["tokens"]["train"] > manifest["tokens"]["validation"] > 0


# --- what does not fit ---


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"objective": "masked", "size": None, "model": sp.decoder(layers=1, dim=32, heads=1)}, "encoder"),
        ({"objective": "causal", "size": None, "model": sp.encoder(layers=1, dim=32, heads=1)}, "decoder"),
        ({"objective": "span", "size": None, "model": sp.decoder(layers=1, dim=32, heads=1)}, "encoder"),
        ({"tokenizer": None}, "need a tokenizer"),
        ({"loop": {"batch_tokens": 32}}, "less than one row"),
        ({"size": 2, "start": "somewhere"}, "exclude each other"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(pantry, tmp_path, choices, said):
    with pytest.raises(sp.ConfigError, match=said):
        sp.pretrain(config(pantry, **choices), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_model_goes_on_from_another_and_says_so(pantry, tmp_path):
    first = sp.pretrain(config(pantry), out=tmp_path / "first")
    again = sp.pretrain(
        config(pantry, size=None, tokenizer=None, start=str(first.path)), out=tmp_path / "again"
    )
    assert again.manifest["parent"]["path"] == str(first.path)
    assert again.series("train/loss")[0][1] < first.series("train/loss")[0][1]
