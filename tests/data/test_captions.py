"""Pictures with their texts: from records, folders and the village; what has no partner is listed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stockpot.data.captions import CAPTION_PROMPT, Caption, read_captions
from stockpot.errors import DataError
from stockpot.image import save_png


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog", "stray"):
        save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / f"{name}.png")
    return tmp_path


def test_records_name_pictures_beside_their_file(folder):
    records = [
        {"image": "cat.png", "text": "a cat"},
        {"image": "cat.png", "prompt": "Question: What? Answer:", "text": "cat"},
        {"image": "dog.png", "text": "a dog"},
        {"image": "gone.png", "text": "a ghost"},
    ]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, records)))
    for source in (folder, folder / "captions.jsonl"):
        found = read_captions([source])
        assert found.texts == [
            Caption(0, CAPTION_PROMPT, "a cat"),
            Caption(0, "Question: What? Answer:", "cat"),
            Caption(1, CAPTION_PROMPT, "a dog"),
        ]
        assert [one.name for one in found.pictures] == [str(folder / "cat.png"), str(folder / "dog.png")]
        assert found.without_picture == [f"{folder / 'captions.jsonl'}:4"]
        assert found.without_text == [str(folder / "stray.png")]
        first, second = found.complaints()
        assert first.startswith("1 captions without a picture left out") and "captions.jsonl:4" in first
        assert second.startswith("1 pictures without a caption left out") and "stray.png" in second
    assert len(read_captions([folder], limit=1).pictures) == 1


def test_a_folder_of_pairs(folder):
    (folder / "cat.txt").write_text("a cat\n")
    (folder / "bird.txt").write_text("a bird")
    found = read_captions([folder])
    assert found.texts == [Caption(0, CAPTION_PROMPT, "a cat")]
    assert found.without_picture == [str(folder / "bird.txt")]
    assert found.without_text == [str(folder / "dog.png"), str(folder / "stray.png")]


def test_a_caption_file_may_have_a_byte_order_mark_and_an_empty_one_says_nothing(folder):
    (folder / "cat.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (folder / "dog.txt").write_text(" \n")
    found = read_captions([folder])
    assert [one.text for one in found.texts] == ["a cat"]
    assert str(folder / "dog.png") in found.without_text


def test_the_limit_counts_the_pictures_of_all_sources(folder):
    for name in ("cat", "dog"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"image": f"{name}.png", "text": name}))
    assert len(read_captions([folder / "cat.jsonl", folder / "dog.jsonl"], limit=1).pictures) == 1


def test_scenes_bring_a_caption_and_a_question_each():
    found = read_captions(["village:scenes/val:3:20"])
    assert len(found.pictures) == 20 and len(found.texts) == 40
    assert sum(one.prompt == CAPTION_PROMPT for one in found.texts) == 20
    assert found.pictures[0].pixels().shape == (32, 32, 3)
    assert len(read_captions(["village:scenes"], limit=7).pictures) == 7


def test_no_scene_at_all_is_an_error_beside_other_data_too(folder):
    (folder / "cat.txt").write_text("a cat")
    with pytest.raises(DataError, match="village:scenes:0:0 names 0 scenes"):
        read_captions([folder, "village:scenes:0:0"])


def test_nothing_to_learn_from_is_an_error(folder):
    with pytest.raises(DataError, match="has a picture"):
        read_captions([folder])
    (folder / "texts.jsonl").write_text('{"text": "no picture"}\n')
    with pytest.raises(DataError, match="text record has no picture"):
        read_captions([folder])
