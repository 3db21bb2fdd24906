"""A model learns to draw: the same seed gives the same picture, a run opens as it was, and the text steers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from stockpot.data.captions import fingerprint_captions
from stockpot.durable import fingerprint
from stockpot.errors import CheckpointError, ConfigError, DataError
from stockpot.image import Image, save_png, save_sheet
from stockpot.model.config import encoder
from stockpot.model.transformer import Transformer
from stockpot.stages import diffusion, steering
from stockpot.stages.diffusion import DrawConfig, draw, load_painter, train_draw
from stockpot.stages.steering import NO_WORD, make_steering
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.losses import Loss
from stockpot.village import VILLAGE_VERSION, Village
from stockpot.weights.store import save

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CPU = torch.device("cpu")


def settings(**more):
    given = {"data": "village:scenes:0:40", "fold": 4, "channels": (16, 16), "size": 16}
    return DrawConfig(**given | {"loop": {"steps": 3, "batch_tokens": 8, "log_every": 1}} | more)


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """Save an encoder of one layer that has learned nothing."""
    from stockpot.bundle import Bundle

    tokenizer = Tokenizer.train(
        [scene.facts.caption for scene in Village().scenes(limit=200)], vocab_size=300
    )
    torch.manual_seed(0)
    model = Transformer(encoder(layers=1, dim=32, heads=2, context=32, vocab_size=tokenizer.vocab_size))
    return str(save(tmp_path_factory.mktemp("encoder") / "model", Bundle(model, tokenizer)))


@pytest.fixture(scope="module")
def runs(tiny_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("draw")
    sources = {"encoder": tiny_encoder, "words": "words", "nothing": "nothing"}
    return {name: train_draw(settings(encoder=source), out=folder / name) for name, source in sources.items()}


@pytest.mark.parametrize("kind", ["encoder", "words", "nothing"])
def test_a_run_draws_and_the_same_seed_draws_the_same(runs, kind):
    texts = ["a red circle", "a blue square left of a green cross"]
    pictures = draw(runs[kind].path, texts, steps=3)
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    assert np.array_equal(draw(runs[kind].path, texts, steps=3), pictures)
    assert not np.array_equal(draw(runs[kind].path, texts, steps=3, seed=5), pictures)
    together = draw(
        runs[kind].path, texts[:1], steps=3
    )  # padding to the longer text changes nothing but rounding
    assert np.abs(together[0].astype(int) - pictures[0].astype(int)).max() <= 2


def test_states_of_many_texts_take_bounded_memory(tiny_encoder, monkeypatch):
    texts = [scene.facts.caption for scene in Village().scenes(limit=120)]
    free, bound = (make_steering(tiny_encoder, [], device=CPU) for _ in range(2))
    monkeypatch.setattr(steering, "KEPT_BYTES", 20 * 4 * 32 * steering.MOST_TOKENS)
    for _ in range(2):
        for at in range(0, 120, 40):
            states, real = bound.states(texts[at : at + 40])
            assert len(bound._known) <= 20
            for mine, here, text in zip(states, real, texts[at : at + 40], strict=True):
                torch.testing.assert_close(mine[here], free.states([text])[0][0])


def test_a_run_names_the_model_that_steers_it(runs, tiny_encoder):
    parents = {kind: run.manifest["parent"] for kind, run in runs.items()}
    assert parents["words"] is None and parents["nothing"] is None
    assert parents["encoder"]["path"] == tiny_encoder
    assert parents["encoder"]["fingerprint"] == fingerprint(tiny_encoder)["sha256"]


def test_the_text_steers_unless_there_is_none(runs):
    for kind, steers in (("encoder", True), ("words", True), ("nothing", False)):
        one, other = (draw(runs[kind].path, text, steps=3) for text in ("a red circle", "two blue crosses"))
        assert np.array_equal(one, other) != steers, kind


def test_guidance_goes_beyond_the_plain_model_where_there_are_words(runs):
    for kind, guides in (("words", True), ("nothing", False)):
        plain, guided = (draw(runs[kind].path, "a red circle", steps=3, guidance=by) for by in (1.0, 7.0))
        assert np.array_equal(plain, guided) != guides, kind


@pytest.mark.parametrize("kind", ["encoder", "words", "nothing"])
def test_a_run_leaves_a_sheet_of_what_it_draws(runs, kind):
    """Two rows of six, four pixels of the file for each; their texts stand beside it, in order."""
    samples = runs[kind].path / "samples"
    texts = (samples / "drawings.txt").read_text().splitlines()
    assert len(texts) == len(set(texts)) == 12
    sheet = Image(samples / "drawings.png").pixels()
    assert sheet.shape == (2 * 64, 6 * 64, 3)
    last = draw(runs[kind].path, texts)[11]
    found = sheet[64:, -64:][::4, ::4]
    assert np.abs(found.astype(int) - last.astype(int)).max() <= 2  # rounding, as with other texts beside it


def test_folding_comes_back():
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    for fold in (1, 2, 4):
        folded = diffusion._fold(pixels, fold)
        assert folded.shape == (2, 3 * fold**2, 8 // fold, 8 // fold)
        assert folded.abs().max() <= 1
        assert torch.equal(diffusion._unfold(folded, fold), pixels)


@pytest.mark.parametrize("predicts", ["picture", "v"])
def test_a_perfect_denoiser_has_no_loss(predicts):
    """It gives the picture x, or v = √ᾱ · noise − √(1 − ᾱ) · picture (Salimans & Ho 2022, §4)."""
    batch = next(iter(diffusion._Batches(
        np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8),
        ["a"] * 8, make_steering("nothing", [], device=CPU), settings(),
    )))  # fmt: skip
    alphas = diffusion._scheduler("DDPMScheduler", predicts).alphas_cumprod[batch.times][:, None, None, None]
    x = diffusion._fold(batch.pixels, 4)
    wanted = x if predicts == "picture" else alphas.sqrt() * batch.noise - (1 - alphas).sqrt() * x

    def perfect(noisy, time, **_):
        torch.testing.assert_close(noisy, alphas.sqrt() * x + (1 - alphas).sqrt() * batch.noise)
        return (wanted,)

    loss = diffusion._loss(perfect, batch, predicts=predicts)
    assert isinstance(loss, Loss) and loss.count == 8
    assert float(loss.total) == pytest.approx(0.0, abs=1e-6)


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, interrupted_at):
    config = settings(encoder="words", loop={"steps": 4, "batch_tokens": 8, "log_every": 1})
    whole = train_draw(config, out=tmp_path / "whole")
    interrupted_at(2, lambda press: train_draw(config, out=tmp_path / "cut", progress=press))
    cut = train_draw(config, out=tmp_path / "cut", resume=True)
    one, other = (dict(load_painter(run.path).network.named_parameters()) for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_words_are_one_hot_and_say_where_they_stand():
    steering = make_steering("words", ["a red circle", "a blue circle"], device=CPU)
    assert steering.words == [NO_WORD, "a", "blue", "circle", "red"]
    states, real = steering.states(["red circle", "circle unheard red", ""])
    assert states.shape == (3, 3, steering.width) and real.sum(1).tolist() == [2, 3, 1]
    assert states[0, 0].nonzero().flatten().tolist() == [4, 5]  # "red", first
    assert states[1, 1].nonzero().flatten().tolist() == [0, 6]  # unknown, second
    assert states[1, 2].nonzero().flatten().tolist() == [4, 7]
    assert not states[0, 2].any()


def test_an_encoder_gives_its_states(tiny_encoder):
    from stockpot.weights.store import load

    steering = make_steering(tiny_encoder, [], device=CPU)
    states, real = steering.states(["a red circle", "a"])
    bundle = load(tiny_encoder)
    ids = torch.tensor([bundle.encode("a red circle")])
    with torch.no_grad():
        expected = bundle.model(ids, last=0).hidden[0]
    expected /= expected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(states[0][real[0]], expected, rtol=1e-5, atol=1e-5)


def test_no_kind_of_text_is_louder_than_another(tiny_encoder):
    for source in ("words", tiny_encoder):
        states, real = make_steering(source, ["a red circle"], device=CPU).states(["a red circle", "circle"])
        assert torch.allclose(states[real].square().mean(-1), torch.ones(int(real.sum())), atol=1e-5)
        assert not states[~real].any()
    assert not make_steering("nothing", [], device=CPU).states(["a red circle"])[0].any()


def test_bad_input_is_told(runs, tmp_path, tiny_base):
    with pytest.raises(CheckpointError, match="draws"):
        draw(tiny_base, "a red circle")
    with pytest.raises(ConfigError, match="multiple of"):
        settings(size=18)
    with pytest.raises(DataError, match="has a picture"):
        (tmp_path / "lost.txt").write_text("a ghost")
        train_draw(settings(data=str(tmp_path)), out=tmp_path / "run")
    import shutil

    from stockpot.run import Run

    folder = tmp_path / "copy"
    shutil.copytree(Run.open(runs["words"].path).model_path, folder)
    (folder / "denoiser" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_painter(folder)
    (folder / "draw.json").write_text(json.dumps({"kind": "stockpot-draw"}))
    with pytest.raises(CheckpointError):
        load_painter(folder)


def test_pictures_of_a_folder_are_learned_too(tmp_path):
    for number in range(4):
        save_png(np.full((20, 10, 3), number, np.uint8), tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a thing")
    (tmp_path / "3.png").write_bytes(b"nonsense")
    notes = []
    run = train_draw(
        settings(data=(str(tmp_path), "village:scenes:0:40"), loop={"steps": 1, "batch_tokens": 4}, limit=4),
        out=tmp_path / "run",
        progress=notes.append,
    )
    assert any("1 pictures cannot be read" in note.get("text", "") for note in notes)
    assert any("3 pictures" in note.get("text", "") for note in notes)
    read, village = run.manifest["data"]
    assert read["path"] == str(tmp_path) and village["version"] == VILLAGE_VERSION
    assert [read] == fingerprint_captions([tmp_path]), "the run's own files are none of the data"
    (tmp_path / "0.png").write_bytes((tmp_path / "1.png").read_bytes())
    (changed,) = fingerprint_captions([tmp_path])
    assert changed["sha256"] != read["sha256"]


def test_a_sheet_holds_all_pictures(tmp_path):
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)]
    save_sheet(pictures, tmp_path / "sheet.png", zoom=3, columns=2)
    sheet = Image(tmp_path / "sheet.png").pixels()
    assert sheet.shape == (12, 12, 3)
    assert [sheet[0, 0, 0], sheet[0, 6, 0], sheet[6, 0, 0], sheet[6, 6, 0]] == [10, 20, 30, 255]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
