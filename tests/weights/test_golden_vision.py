"""ViT and CLIP: equal states, embeddings and scores in both directions."""

from __future__ import annotations

import json

import pytest
import torch
from golden import NEAR, lively

from stockpot.errors import CheckpointError
from stockpot.model.config import StackConfig
from stockpot.model.vision import ImageConfig, ImageEncoder, TextTower, TwoTowers
from stockpot.weights.vision import load_vision, save_vision

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore::UserWarning")]

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**SIZES, "image_size": 24, "patch_size": 8}
END = 98
TEXT = {
    **SIZES, "hidden_size": 32, "vocab_size": 99, "max_position_embeddings": 20,
    "bos_token_id": 97, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip


def vit(head, **choices):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**{**IMAGE, "initializer_range": 0.2, **choices})
    return lively(getattr(transformers, f"ViT{head}")(config))


def clip(head, image=None, text=None, **choices):
    """Make CLIP's model, or one of its towers."""
    torch.manual_seed(0)
    image = {**IMAGE, "projection_dim": 24, "initializer_factor": 4.0, **(image or {})}
    text = {**TEXT, "projection_dim": 24, "initializer_factor": 4.0, **(text or {})}
    both = {"vision_config": image, "text_config": text, "projection_dim": 24, "initializer_factor": 4.0}
    kinds = {
        "Vision": ("CLIPVisionConfig", image),
        "Text": ("CLIPTextConfig", text),
        "Model": ("CLIPConfig", both),
    }
    name, values = next(value for start, value in kinds.items() if head.startswith(start))
    return lively(getattr(transformers, f"CLIP{head}")(getattr(transformers, name)(**{**values, **choices})))


def images(size=24, batch=3):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))


def texts():
    """Ids whose texts end at different places, with and without something behind the end."""
    ids = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(3))
    ids[0, 11], ids[1, 6], ids[2, 3] = END, END, END
    return ids


def same_image(theirs, ours):
    pooled = ours.config.pooler or ours.config.pool_norm
    pixels = images()
    with torch.no_grad():
        expected = theirs(pixels)
        found = ours(pixels)
    hidden = expected.get("last_hidden_state")
    if hidden is not None:
        torch.testing.assert_close(found.hidden, hidden, **NEAR)
        assert hidden.std() > 0.1
    if pooled and expected.get("pooler_output") is not None:
        torch.testing.assert_close(found.pooled, expected["pooler_output"], **NEAR)
    if expected.get("image_embeds") is not None:
        torch.testing.assert_close(found.embedding, expected["image_embeds"], **NEAR)
    if expected.get("logits") is not None:
        torch.testing.assert_close(found.scores, expected["logits"], **NEAR)
        assert found.scores.std() > 0.01


def comes_back(theirs, folder):
    """Write what they wrote, and open that with them: nothing is missing, every weight is the same."""
    save_vision(folder / "ours", load_vision(folder / "theirs"))
    again, report = type(theirs).from_pretrained(folder / "ours", output_loading_info=True)
    unread = (
        set() if getattr(theirs, "pooler", 1) is not None else {"pooler.dense.weight", "pooler.dense.bias"}
    )
    assert set().union(*report.values()) == unread, report
    config = json.loads((folder / "ours" / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]
    mine, yours = again.state_dict(), theirs.state_dict()
    assert mine.keys() - unread == yours.keys()
    assert all(torch.equal(mine[name], yours[name]) for name in yours)
    return again.eval()


ENCODERS = {
    "vit": lambda: vit("Model"),
    "vit without pooler": lambda: transformers.ViTModel(vit("Model").config, add_pooling_layer=False).eval(),
    "vit with classes": lambda: vit("ForImageClassification", num_labels=3),
    "vit without biases": lambda: vit("Model", qkv_bias=False, hidden_act="relu"),
    "clip image tower": lambda: clip("VisionModel"),
    "clip image tower with projection": lambda: clip("VisionModelWithProjection"),
    "clip image tower with gelu": lambda: clip("VisionModel", image={"hidden_act": "gelu"}),
}


def test_what_is_written_replaces_all_of_an_older_model(tmp_path):
    vit("Model").save_pretrained(tmp_path / "theirs")
    encoder = load_vision(tmp_path / "theirs")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'
    )
    (out / "model-00001-of-00001.safetensors").write_bytes(b"an old shard")
    save_vision(out, encoder)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ENCODERS)
def test_image_encoders_are_equal_in_both_directions(name, tmp_path):
    theirs = ENCODERS[name]()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_vision(tmp_path / "theirs")
    assert isinstance(ours, ImageEncoder)
    assert ours.config.parameters() == sum(param.numel() for param in ours.parameters())
    same_image(theirs, ours)
    same_image(comes_back(theirs, tmp_path), ours)


@pytest.mark.parametrize("old_end", [False, True])
@pytest.mark.parametrize("head", ["TextModel", "TextModelWithProjection"])
def test_text_towers_are_equal_in_both_directions(head, old_end, tmp_path):
    theirs = clip(head, text={"eos_token_id": 2} if old_end else None)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_vision(tmp_path / "theirs")
    assert isinstance(ours, TextTower)
    for model in (theirs, comes_back(theirs, tmp_path)):
        with torch.no_grad():
            expected = model(texts())
            hidden, vector = ours(texts())
        torch.testing.assert_close(hidden, expected.last_hidden_state, **NEAR)
        pooled = expected.get("text_embeds", expected.get("pooler_output"))
        torch.testing.assert_close(vector, pooled, **NEAR)


def test_a_text_tower_passes_over_padding(tmp_path):
    theirs = clip("TextModelWithProjection")
    theirs.save_pretrained(tmp_path)
    ours = load_vision(tmp_path)
    mask = torch.arange(12) <= (texts() == END).int().argmax(dim=-1)[:, None]
    with torch.no_grad():
        expected = theirs(texts(), attention_mask=mask.long()).text_embeds
        torch.testing.assert_close(ours(texts(), mask)[1], expected, **NEAR)


def test_both_towers_are_equal_in_both_directions(tmp_path):
    theirs = clip("Model")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_vision(tmp_path / "theirs")
    assert isinstance(ours, TwoTowers)
    for model in (theirs, comes_back(theirs, tmp_path)):
        with torch.no_grad():
            expected = model(input_ids=texts(), pixel_values=images())
            torch.testing.assert_close(ours.embed_images(images()), expected.image_embeds, **NEAR)
            torch.testing.assert_close(ours.embed_texts(texts()), expected.text_embeds, **NEAR)
            found = ours(images(), texts())
        # a product of vectors of length 1, times exp(2.66) = 14
        torch.testing.assert_close(found, expected.logits_per_image, atol=1e-4, rtol=1e-4)
        assert found.std() > 0.1


def test_images_of_another_size_are_told(tmp_path):
    vit("Model").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\); this encoder reads \(3, 24, 24\)"):
        load_vision(tmp_path)(images(32))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "resnet"}, "resnet"),
        ({"patch_size": 7}, "no multiple"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_size": 240}, "of another shape"),
        ({"num_hidden_layers": 10**9}, "parameters"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"pooler_act": "relu"}, "pooler_act"),
    ],
)
def test_settings_that_cannot_be_right_are_refused_in_one_line(values, told, tmp_path):
    vit("Model").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError) as caught:
        load_vision(tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_no_family_has_is_not_written(tmp_path):
    stack = StackConfig(
        layers=1, dim=16, heads=2, attends="bidirectional", position="learned", context=5, qk_norm=None
    )
    encoder = ImageEncoder(ImageConfig(image_size=4, patch_size=2, stack=stack))
    assert encoder(torch.zeros(1, 3, 4, 4)).hidden.shape == (1, 5, 16)
    with pytest.raises(CheckpointError, match="no family"):
        save_vision(tmp_path / "m", encoder)
    assert not (tmp_path / "m").exists()


def test_a_language_model_is_told_from_an_image_model(folder):
    with pytest.raises(CheckpointError, match="'qwen3', no image model"):
        load_vision(folder)
