"""Eyes: a picture's ids compute what a prefix computes, wherever they stand; equal pictures have equal ids."""

from __future__ import annotations

import pytest
import torch

from stockpot.errors import GenerationError
from stockpot.model import sight as room
from stockpot.model.config import StackConfig, decoder
from stockpot.model.sight import ImageReader, ReaderConfig, attach_sight, detach_sight, sight_of
from stockpot.model.transformer import Transformer
from stockpot.model.vision import ImageConfig, ImageEncoder

VOCAB, GRID = 50, 4


def eyes(dim=32, layers=1):
    stack = StackConfig(
        layers=1, dim=16, heads=2, context=GRID + 1, attends="bidirectional", position="learned", qk_norm=None
    )
    tower = ImageEncoder(ImageConfig(image_size=8, patch_size=4, stack=stack))
    return ImageReader(ReaderConfig(image=tower.config, dim=dim, layers=layers), tower, std=1.0).eval()


@pytest.fixture
def seeing():
    torch.manual_seed(0)
    model = Transformer(
        decoder(layers=2, dim=32, heads=2, context=64, vocab_size=VOCAB, zero_init=False)
    ).eval()
    attach_sight(model, eyes())
    return model.requires_grad_(False)


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_pictures_ids_compute_what_a_prefix_computes(seeing):
    sight = sight_of(seeing)
    here = sight.look(b"a", lambda: picture(1))
    assert list(here) == list(range(VOCAB, VOCAB + GRID))
    vectors = sight.reader.project(sight.reader.features(picture(1)[None]))
    words = torch.tensor([[7, 8, 9]])
    expected = seeing(words, prefix=vectors).logits
    found = seeing(torch.cat((torch.tensor([list(here)]), words), 1)).logits[:, GRID:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape[-1] == VOCAB


def test_pictures_stand_anywhere_and_each_is_its_own(seeing):
    sight = sight_of(seeing)
    a, b = (sight.look(key, lambda seed=seed: picture(seed)) for seed, key in enumerate((b"a", b"b")))
    ids = torch.tensor([[7, *a, 8, *b, 9]])
    whole = seeing(ids).logits
    assert not torch.allclose(seeing(torch.tensor([[7, *b, 8, *b, 9]])).logits[:, -1], whole[:, -1])
    assert torch.allclose(seeing(torch.tensor([[7, *b, 8, *b, 9]])).logits[:, 0], whole[:, 0], atol=1e-5)
    cache = seeing.new_cache(1, 32)
    parts = [seeing(ids[:, :3], cache=cache).logits, seeing(ids[:, 3:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_an_equal_picture_is_looked_at_once(seeing):
    sight, opened = sight_of(seeing), []

    def open_it():
        opened.append(1)
        return picture(1)

    assert sight.look(b"a", open_it) == sight.look(b"a", open_it)
    assert len(opened) == 1
    assert sight.known_ids == VOCAB + GRID
    sight.forget()
    assert sight.known_ids == VOCAB


def test_many_pictures_keep_their_vectors(seeing):
    sight = sight_of(seeing)
    first = sight.look(b"0", lambda: picture(0))
    before = seeing(torch.tensor([list(first)])).logits
    for seed in range(1, 60):
        sight.look(str(seed).encode(), lambda seed=seed: picture(seed))
    assert torch.equal(seeing(torch.tensor([list(first)])).logits, before)


def look_at(sight, seeds):
    """Look at pictures and let go of them; give the first id of each."""
    return [sight.look(str(seed).encode(), lambda seed=seed: picture(seed))[0] for seed in seeds]


def test_memory_is_bounded_and_a_forgotten_picture_gets_new_ids(seeing, monkeypatch):
    monkeypatch.setattr(room, "MOST_BYTES", 1)  # as few as there can be: 16
    sight = sight_of(seeing)
    firsts = look_at(sight, range(17))
    assert sight._kept.shape == (16 * GRID, 32)
    (again,) = look_at(sight, [0])
    assert again > firsts[-1] > firsts[0]
    last = sight.look(b"16", lambda: picture(16))
    assert last[0] == firsts[-1]
    vectors = sight.reader.project(sight.reader.features(picture(16)[None]))
    prefixed = seeing(torch.tensor([[3]]), prefix=vectors).logits
    torch.testing.assert_close(
        seeing(torch.tensor([[*last, 3]])).logits[:, -1], prefixed[:, -1], rtol=1e-5, atol=1e-5
    )


def test_a_picture_in_use_keeps_its_place_and_a_forgotten_one_is_refused(seeing, monkeypatch):
    monkeypatch.setattr(room, "MOST_BYTES", 1)
    sight = sight_of(seeing)
    waits = sight.hold([7, *sight.look(b"0", lambda: picture(0)), 8])
    before = seeing(torch.tensor([waits])).logits
    (first,) = look_at(sight, [1])
    look_at(sight, range(2, 40))
    assert torch.equal(seeing(torch.tensor([waits])).logits, before)
    assert sight.look(b"0", lambda: pytest.fail("seen already")) == waits[1:-1]
    with pytest.raises(GenerationError, match="forgotten"):
        sight.hold([first])
    many = [sight.look(str(seed).encode(), lambda seed=seed: picture(seed)) for seed in range(100, 115)]
    with pytest.raises(GenerationError, match="16 pictures are in use"):
        look_at(sight, [200])
    many.pop()
    look_at(sight, [200])
    assert torch.equal(seeing(torch.tensor([waits])).logits, before)


def test_training_sees_the_batchs_pictures_and_learns_through_them(seeing):
    sight = sight_of(seeing)
    sight.reader.out.requires_grad_(True)
    features = sight.reader.features(torch.stack([picture(1), picture(2)]))
    with sight.showing(features):
        ids = torch.tensor([[*range(VOCAB, VOCAB + GRID), 3], [*range(VOCAB + GRID, VOCAB + 2 * GRID), 3]])
        out = seeing(ids).logits
    out.sum().backward()
    assert sight.reader.out.weight.grad.abs().sum() > 0
    expected = seeing(torch.tensor([[3], [3]]), prefix=sight.reader.project(features)).logits
    torch.testing.assert_close(out[:, -1], expected[:, -1], rtol=1e-5, atol=1e-5)


def test_two_layers_bend_between(seeing):
    reader = eyes(layers=2)
    features = torch.randn(1, GRID, 16)
    half = reader.project(features) + reader.project(-features)
    assert half.abs().max() > 1e-3
    linear = eyes(layers=1)
    assert (linear.project(features) + linear.project(-features)).abs().max() < 1e-4


def test_eyes_come_off_and_do_not_fit_twice(seeing):
    with pytest.raises(ValueError, match="already"):
        attach_sight(seeing, eyes())
    detach_sight(seeing)
    assert sight_of(seeing) is None
    with pytest.raises(ValueError, match="width"):
        attach_sight(seeing, eyes(dim=16))
