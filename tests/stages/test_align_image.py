"""A model learns to see: what stays frozen is proven, pictures are never learned, and a run opens as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stockpot.data.batch import IGNORED
from stockpot.data.captions import CAPTION_PROMPT, Caption, question_prompt
from stockpot.errors import CheckpointError, ConfigError, DataError, GenerationError, TrainError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling
from stockpot.image import Image, save_png
from stockpot.judge import images as judge
from stockpot.judge.images import evaluate_images
from stockpot.model import sight as room
from stockpot.model.adapters import LoRA, attach
from stockpot.model.frozen import KINDS
from stockpot.model.sight import sight_of
from stockpot.model.vision import ImageEncoder
from stockpot.prompt.soft import frozen_hash
from stockpot.run import Run
from stockpot.stages import align_image as stage
from stockpot.stages.align_image import AlignImageConfig, align_image
from stockpot.stages.tower import TowerConfig, train_tower
from stockpot.text.chat import Message
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.pictures import CaptionBatches, caption_rows, look_at_all
from stockpot.village import Village
from stockpot.village.scenes import paint
from stockpot.weights.store import load, save
from stockpot.weights.vision import save_vision

SMALL = {"dim": 32, "layers": 1, "loop": {"steps": 2}}


def settings(base, adapters="bottleneck", **more):
    given = {"model": str(base), "data": "village:scenes:0:60", "adapters": adapters, "tower": SMALL} | more
    return AlignImageConfig(**{"loop": {"steps": 3, "lr": 0.01, "batch_tokens": 400}} | given)


@pytest.fixture(scope="module")
def runs(tiny_base, tmp_path_factory):
    """Align the tiny model in every way."""
    folder = tmp_path_factory.mktemp("eyes")
    notes = {}
    made = {}
    for kind in ("none", "linear", "bottleneck", "lora", "full"):
        seen = notes.setdefault(kind, [])
        made[kind] = align_image(settings(tiny_base, kind), out=folder / kind, progress=seen.append)
    return made


@pytest.fixture(scope="module")
def pictures():
    return [Image(paint(scene)) for scene in Village().scenes("val", 6)]


def logits(bundle, image):
    ids = torch.tensor([bundle.encode([image, "A picture of"])])
    with torch.no_grad():
        return bundle.model(ids).logits


@pytest.mark.parametrize("kind", ["none", "linear", "bottleneck", "lora"])
def test_what_is_frozen_is_proven_by_its_hash(runs, tiny_base, kind):
    manifest = Run.open(runs[kind].path).manifest
    assert manifest["is_frozen"] is True
    assert manifest["frozen_sha256"] == frozen_hash(load(tiny_base, dtype="float32").model)
    before, after = manifest["text_loss"].values()
    assert (before == after) == (kind in ("none", "linear"))


def test_full_training_changes_the_model_and_says_so(runs):
    manifest = Run.open(runs["full"].path).manifest
    assert manifest["is_frozen"] is False
    assert manifest["text_loss"]["before"] != manifest["text_loss"]["after"]


def test_a_changed_frozen_weight_fails_the_run(tiny_base, tmp_path, monkeypatch):
    def spoil(*args, **kwargs):
        args[0].decoder.layers[0].ffn.down.weight.data[0, 0] += 1

    monkeypatch.setattr(stage, "fit", spoil)
    with pytest.raises(TrainError, match="frozen weight changed"):
        align_image(settings(tiny_base, "linear"), out=tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_of_few_bits_is_proven_frozen_as_it_was_rounded(tiny_base, tmp_path, monkeypatch, kind):
    config = settings(tiny_base, "lora", lora=LoRA(rank=4, frozen=kind))
    run = align_image(config, out=tmp_path / "run")
    assert run.manifest["is_frozen"] is True
    rounded = load(tiny_base, dtype="float32").model
    plain = frozen_hash(rounded)
    attach(rounded, config.lora)
    added = [name for name in rounded.state_dict() if "lora_" in name]
    assert run.manifest["frozen_sha256"] == frozen_hash(rounded, added) != plain

    def spoil(model, *args, **kwargs):
        model.decoder.layers[0].ffn.down.frozen.digits[0] += 1

    monkeypatch.setattr(stage, "fit", spoil)
    with pytest.raises(TrainError, match="frozen weight changed"):
        align_image(config, out=tmp_path / "spoiled")


def test_the_saving_of_looking_once_is_told(runs):
    facts = runs["linear"].manifest["pictures"]
    assert facts["count"] == 60 and facts["shown"] > 3
    assert facts["saved_s"] == pytest.approx((facts["shown"] / 60 - 1) * facts["look_s"], abs=0.01)
    assert "shown" not in runs["none"].manifest["pictures"]


@pytest.mark.parametrize("kind", ["none", "linear", "bottleneck", "lora", "full"])
def test_a_run_opens_with_the_logits_it_was_trained_to(runs, tiny_base, tmp_path, pictures, kind):
    """LoRA is merged on loading, which rounds; everything else is equal to the last bit."""
    before = logits(load(runs[kind].path), pictures[0])
    again = logits(load(runs[kind].path), pictures[0])
    assert torch.equal(before, again)
    if kind != "full":
        put_on = logits(load(tiny_base, adapters=[runs[kind].path]), pictures[0])
        assert torch.equal(put_on, before)
    if kind not in ("none", "lora"):
        plain = load(tiny_base)
        assert not torch.allclose(plain.model(torch.tensor([[5, 6]])).logits[0, 0], before[0, -1])


@pytest.mark.parametrize("kind", ["linear", "bottleneck", "lora", "full", *KINDS])
def test_what_is_saved_is_what_was_trained(tiny_base, tmp_path, pictures, monkeypatch, kind):
    seen = {}
    prove = stage._prove

    def look(model, *args):
        with torch.no_grad():
            features = sight_of(model).reader.features(torch.from_numpy(pictures[0].pixels().copy())[None])
        with torch.no_grad(), sight_of(model).showing(features):
            seen["logits"] = model.eval()(torch.tensor([[*range(400, 416), 7]])).logits
        prove(model, *args)

    monkeypatch.setattr(stage, "_prove", look)
    held = {"adapters": "lora", "lora": LoRA(frozen=kind)} if kind in KINDS else {"adapters": kind}
    run = align_image(settings(tiny_base, **held, loop={"steps": 1, "lr": 0.01}), out=tmp_path / "run")
    bundle = load(run.path)
    ids = torch.tensor([[*bundle.encode([pictures[0]])[-16:], 7]])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if kind in ("lora", *KINDS) else {"rtol": 0, "atol": 0}
    with torch.no_grad():  # with gradients, other kernels round otherwise
        found = bundle.model(ids).logits
    torch.testing.assert_close(found, seen["logits"], **tolerance)


def test_eyes_are_refused_on_another_model(runs, tiny_base, tmp_path):
    other = load(tiny_base)
    with torch.no_grad():
        other.model.embed.weight.add_(1.0)
    save(tmp_path / "other", other)
    with pytest.raises(CheckpointError, match="was trained on"):
        load(tmp_path / "other", adapters=[runs["linear"].path])
    with pytest.raises(CheckpointError, match="already"):
        load(runs["linear"].path, adapters=[runs["linear"].path])


def test_damaged_eyes_are_refused(runs, tmp_path):
    import shutil

    whole = Run.open(runs["bottleneck"].path).model_path
    for number, spoil in enumerate(
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 40),
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            lambda folder: shutil.rmtree(folder / "vision"),
            lambda folder: (folder / "adapter_config.json").write_text(
                json.dumps(json.loads((folder / "adapter_config.json").read_text()) | {"stockpot": {}})
            ),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        spoil(folder)
        with pytest.raises(CheckpointError):
            load(folder)


# --- pictures and prompts are never learned ---


def test_only_the_caption_is_learned(tiny_base):
    bundle = load(tiny_base)
    texts = [Caption(0, "A picture of", "a red circle"), Caption(1, question_prompt("What?"), "blue")]
    rows, overlong = caption_rows(bundle, texts, 4)
    assert overlong == 0
    grids = np.arange(2 * 4 * 3, dtype=np.float16).reshape(2, 4, 3)
    batch = CaptionBatches(rows, grids, vocab=400, size=2).batch(rows[::-1])
    assert batch.features[0].tolist() == grids[1].tolist()
    for row, text in enumerate(("blue", "a red circle")):
        ids, labels = batch.texts.ids[row], batch.texts.labels[row]
        counted = labels != IGNORED
        wanted = [*bundle.tokenizer.encode(f" {text}"), bundle.tokenizer.eos_id]
        assert labels[counted].tolist() == wanted
        shown = (ids >= 400).nonzero().flatten()
        assert ids[shown].tolist() == [400 + 4 * row + at for at in range(4)]
        assert not counted[shown].any(), "no position of a picture carries loss"
        assert (labels[counted] < 400).all(), "and no label is a picture"
        first = int(counted.nonzero()[0])
        assert ids[first + 1 : first + len(wanted)].tolist() == wanted[:-1], "labels are one ahead"


def test_a_chats_picture_stands_where_the_template_puts_it(tiny_base):
    bundle = load(tiny_base)
    (row,), _ = caption_rows(bundle, [Caption(0, "What is it?", "a circle")], 4, chat=True)
    special = bundle.tokenizer.special_ids
    at = row.before.index(special["<|user|>"])
    assert row.before[at + 1 : at + 5] == (400, 401, 402, 403)
    assert row.before[-1] == special["<|assistant|>"]
    assert row.after == (*bundle.tokenizer.encode("a circle"), special["<|end|>"])


def test_training_and_asking_give_the_same_ids(runs, pictures):
    bundle = load(runs["linear"].path)
    (row,), _ = caption_rows(bundle, [Caption(0, "A picture of", "x")], 16)
    assert tuple(bundle.encode([pictures[0], "A picture of"])) == row.before


def test_a_blank_stays_and_the_rest_is_looked_at(runs, tmp_path):
    reader = sight_of(load(runs["linear"].path).model).reader
    pictures = [Image(np.zeros((9, 5, 3), np.uint8)), Image(b"nonsense")]
    grids, bad = look_at_all(reader, pictures, tmp_path / "grids.npy")
    assert list(bad) == [1] and "no picture" in bad[1]
    assert isinstance(grids, np.memmap) and grids.shape == (2, 16, 32)
    assert grids[0].any() and not grids[1].any()


# --- in the engine ---


def test_pictures_go_through_the_engine_like_words(runs, pictures):
    bundle = load(runs["full"].path)
    greedy = Sampling(max_tokens=6, temperature=0.0)
    prompts = [[one, "A picture of"] for one in pictures] + [
        ["Two pictures:", pictures[0], "and", pictures[1], "show"],
        [Message("user", [pictures[2], "What is in the picture?"])],
        [pictures[0], "A picture of a red circle.\n", pictures[1], "A picture of"],
    ]
    together = [one.ids for one in Engine(bundle).generate(prompts, greedy)]
    alone = [Engine(bundle, prefix_mib=0).generate([one], greedy)[0].ids for one in prompts]
    assert together == alone
    streamed = "".join(chunk.text for chunk in Engine(bundle).stream(prompts[0], greedy))
    assert streamed == Engine(bundle).generate([prompts[0]], greedy)[0].text
    own, other = Engine(bundle).score([(prompts[0], " red"), (prompts[1], " red")])
    assert own.log_prob != other.log_prob


def test_penalties_beams_and_lookup_take_pictures(runs, pictures):
    engine = Engine(load(runs["linear"].path))
    prompt = [pictures[0], "a circle a circle"]
    for more in ({"repetition_penalty": 1.2}, {"beams": 2}, {"lookup": 4}):
        (found,) = engine.generate([prompt], Sampling(max_tokens=4, temperature=0.0, **more))
        assert 0 < found.tokens <= 4


def test_a_blind_model_and_a_bad_picture_are_told(runs, tiny_base, pictures):
    with pytest.raises(GenerationError, match="reads text only"):
        load(tiny_base).encode([pictures[0], "A picture of"])
    with pytest.raises(DataError, match="no picture"):
        load(runs["linear"].path).encode([Image(b"nonsense")])
    with pytest.raises(CheckpointError, match="with eyes cannot"):
        load(runs["linear"].path, quantize="int8")
    bundle = load(runs["linear"].path)
    with pytest.raises(CheckpointError, match="with eyes cannot"):
        save(runs["linear"].path.parent / "whole", bundle)


# --- towers trained here ---


def test_a_tower_learns_to_name_words_from_its_patches():
    """It names them better than the best that sees no picture could: by how often each word is said."""
    scenes = [scene for scene in Village().scenes("train", 600) if scene.facts.relation is None]
    texts = [scene.facts.caption for scene in scenes]
    tokenizer = Tokenizer.train(texts, vocab_size=300)
    captions = [Caption(at, CAPTION_PROMPT, text) for at, text in enumerate(texts)]
    heard = []
    loop = {"steps": 120, "batch_tokens": 64, "log_every": 20, "lr": 0.01}
    tower = train_tower(
        TowerConfig(dim=32, layers=1, learns="words", loop=loop),
        [Image(paint(scene)) for scene in scenes], captions, tokenizer, progress=heard.append,
    )  # fmt: skip
    assert isinstance(tower, ImageEncoder) and not tower.training
    shares = torch.zeros(tokenizer.vocab_size + 1)
    for text in texts:
        words = {*tokenizer.encode(text), tokenizer.vocab_size}
        shares[list(words)] += 1 / len(words) / len(texts)
    blind = float(-(shares * shares.clamp(min=1e-9).log()).sum())
    losses = [one["loss"] for one in heard if "loss" in one]
    assert losses[-1] < blind - 0.3


# --- the judge ---


def test_the_judge_tells_a_model_that_looks_from_one_that_does_not(runs, tiny_base, tmp_path):
    """A model whose eyes give nothing says the same of every picture, and the swap test shows it."""
    blind = load(runs["linear"].path)
    with torch.no_grad():
        sight_of(blind.model).reader.out.weight.zero_()
    report = evaluate_images(blind, limit=12)
    assert report.score("all", "nats gained over other").value == pytest.approx(0.0, abs=1e-4)
    assert report.score("all", "follows: own over other").high < 1
    assert len({one.written for one in report.pictures}) == 1
    with pytest.raises(ConfigError, match="reads text only"):
        evaluate_images(str(tiny_base))
    with pytest.raises(DataError, match="names 0 scenes"):
        evaluate_images(blind, "village:scenes/val:0:0")


def test_a_caption_is_right_whichever_thing_it_names_first(runs, monkeypatch):
    def other_way(caption: str) -> str:
        for one, other in (("left of", "right of"), ("above", "below")):
            for said, turned in ((one, other), (other, one)):
                first, found, second = caption.partition(f" {said} ")
                if found:
                    return f"{second} {turned} {first}"
        return f"{caption}."

    scenes = list(Village(0).scenes("val", 12))
    said = [other_way(scene.facts.caption) for scene in scenes]
    said[0] += " and a dog"
    monkeypatch.setattr(judge._Asking, "write", lambda *_: said)
    report = evaluate_images(runs["linear"].path, "village:scenes/val:0:12")
    assert report.score("all", "caption exact").value == pytest.approx(11 / 12)
    assert all(report.score("all", f"caption {one}").value == 1 for one in ("colour", "shape", "relation"))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """Save a tower that has learned nothing; colours pass through it all the same."""
    torch.manual_seed(0)
    return save_vision(
        tmp_path_factory.mktemp("tower") / "vision", ImageEncoder(TowerConfig(dim=32, layers=1).image())
    )


def test_a_model_that_learned_two_colours_follows_the_picture(tiny_base, tower, tmp_path):
    """Learned on other shades; exchanged or blank, every caption loses."""
    for number in range(48):
        name, shade = (("red", (220 + number % 30, number, 0)), ("blue", (number, 0, 220 + number % 30)))[
            number % 2
        ]
        folder = tmp_path / ("train" if number < 40 else "test")
        folder.mkdir(exist_ok=True)
        save_png(np.full((32, 32, 3), shade, np.uint8), folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"all {name}")
    run = align_image(
        settings(
            tiny_base, "full", data=str(tmp_path / "train"), vision=str(tower), val_share=0.2,
            loop={"steps": 40, "lr": 0.01, "batch_tokens": 600},
        ),
        out=tmp_path / "run",
    )  # fmt: skip
    report = evaluate_images(run.path, str(tmp_path / "test"), limit=8)
    assert report.score("all", "caption exact").value == 1.0
    assert report.score("all", "follows: own over other").value == 1.0
    assert report.score("all", "nats gained over other").low > 0
    assert run.last("val/swapped_loss") > run.last("val/loss")


def test_a_picture_that_cannot_be_read_is_left_out_and_told(tiny_base, tower, tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("a thing")
        save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"nonsense")
    (tmp_path / "lost.txt").write_text("a ghost")
    notes = []
    run = align_image(
        settings(tiny_base, "none", data=str(tmp_path), vision=str(tower)),
        out=tmp_path / "run",
        progress=notes.append,
    )
    told = " ".join(note["text"] for note in notes)
    assert "1 pictures cannot be read" in told and "1 captions without a picture" in told
    manifest = Run.open(run.path).manifest
    assert manifest["pictures"]["damaged"] == 1 and manifest["without_picture"] == 1


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_base, tower, tmp_path, interrupted_at):
    config = settings(
        tiny_base, "bottleneck", vision=str(tower), loop={"steps": 6, "batch_tokens": 400, "log_every": 1}
    )
    whole = align_image(config, out=tmp_path / "whole")
    interrupted_at(3, lambda press: align_image(config, out=tmp_path / "cut", progress=press))
    cut = align_image(config, out=tmp_path / "cut", resume=True)
    one, other = (dict(load(run.path).model.named_parameters()) for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_pictures_than_there_is_room_for_are_refused_not_mixed_up(runs, monkeypatch):
    pictures = [Image(paint(scene)) for scene in Village().scenes("val", 40)]
    prompts = [[one, "A picture of"] for one in pictures]
    greedy = Sampling(temperature=0, max_tokens=4)
    expected = Engine(load(runs["linear"].path)).generate(prompts, greedy)
    monkeypatch.setattr(room, "MOST_BYTES", 1)  # room for 16
    engine = Engine(load(runs["linear"].path))
    found = [one for at in range(0, 40, 8) for one in engine.generate(prompts[at : at + 8], greedy)]
    assert [one.ids for one in found] == [one.ids for one in expected]
    with pytest.raises(GenerationError, match="16 pictures are in use"):
        engine.generate(prompts, greedy)
    with pytest.raises(GenerationError, match="16 pictures are in use"):
        engine.score([(prompt, " a") for prompt in prompts])
    number = engine.submit(Request(prompts[0], greedy))
    for at in range(1, 40, 8):
        engine.score([(prompt, " a") for prompt in prompts[at : at + 8]])
    chunks = []
    while engine.pending:
        chunks += [chunk for chunk in engine.step() if chunk.request == number]
    assert tuple(id for chunk in chunks for id in chunk.ids) == tuple(expected[0].ids)
