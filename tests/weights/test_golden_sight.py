"""A picture through the eyes of a model is what transformers' CLIP sees: the same grid, from the same file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import NEAR, lively

from stockpot.image import Image
from stockpot.model.sight import ImageReader, ReaderConfig
from stockpot.weights.sight import image_tower

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore::UserWarning")]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("both", [False, True])
def test_a_clip_towers_grid_is_that_of_transformers(tmp_path, both):
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    image = {**sizes, "image_size": 24, "patch_size": 8, "initializer_factor": 4.0}
    if both:
        text = {
            **sizes,
            "vocab_size": 99,
            "max_position_embeddings": 20,
            "eos_token_id": 98,
            "bos_token_id": 97,
        }
        config = transformers.CLIPConfig(vision_config=image, text_config=text, projection_dim=24)
        theirs = lively(transformers.CLIPModel(config))
    else:
        theirs = lively(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**image)))
    theirs.save_pretrained(tmp_path)
    tower = image_tower(tmp_path)
    reader = ImageReader(ReaderConfig(image=tower.config, dim=32, mean=MEAN, std=STD), tower).eval()
    picture = Image(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    pixels = torch.from_numpy(picture.square(24).copy())
    normal = transformers.image_transforms.normalize(pixels.numpy().astype(np.float32) / 255, MEAN, STD)
    given = torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))[None].float()
    with torch.no_grad():
        vision = theirs.vision_model if both else theirs
        expected = vision(pixel_values=given).last_hidden_state[:, 1:]
        found = reader.features(pixels[None])
    torch.testing.assert_close(found, expected, **NEAR)
    assert found.shape == (1, 9, 48) and expected.std() > 0.1
