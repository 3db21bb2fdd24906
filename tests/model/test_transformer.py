"""What a whole model promises, whatever it is made of."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stockpot.errors import ConfigError
from stockpot.model.transformer import Transformer

Tiny = Callable[..., Transformer]
Ids = Callable[..., Tensor]
NEAR = {"atol": 1e-5, "rtol": 1e-5}  # float32 rounding on values of size about 1
POSITIONS = ("none", "learned", "sinusoidal", "rope", "alibi", "relative")
SHAPES = ("decoder", "encoder", "encoder_decoder")


@pytest.mark.parametrize("position", POSITIONS)
def test_a_used_model_can_be_sent_to_another_process(position: str, tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(position=position), ids(2, 12)
    expected = model(read).logits
    assert torch.equal(pickle.loads(pickle.dumps(model))(read).logits, expected)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_future_cannot_matter(position: str, tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(position=position), ids(2, 12)
    changed = read.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 61
    before, after = model(read).logits, model(changed).logits
    torch.testing.assert_close(after[:, :7], before[:, :7], **NEAR)
    assert not torch.allclose(after[:, 7:], before[:, 7:])


def test_an_encoder_without_positions_is_blind_to_order(tiny: Tiny, ids: Ids) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    read = ids(2, 10)
    blind = tiny("encoder", position="none")
    torch.testing.assert_close(blind(read[:, order]).logits, blind(read).logits[:, order], **NEAR)
    for position in POSITIONS[1:]:
        sighted = tiny("encoder", position=position)
        assert not torch.allclose(sighted(read[:, order]).logits, sighted(read).logits[:, order], atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", POSITIONS)
def test_documents_in_a_row_do_not_see_each_other(shape: str, position: str, tiny: Tiny, ids: Ids) -> None:
    model = tiny(shape, position=position)
    documents = [ids(1, length, seed=length) for length in (5, 4, 3)]
    numbers = torch.tensor([[1] * 5 + [2] * 4 + [3] * 3 + [0] * 2])
    row = torch.cat([*documents, ids(1, 2)], 1)
    if shape == "encoder_decoder":
        together = model(row, attention_mask=numbers, source=row, source_mask=numbers).logits
        alone = [model(document, source=document).logits for document in documents]
    else:
        together = model(row, attention_mask=numbers).logits
        alone = [model(document).logits for document in documents]
    torch.testing.assert_close(together[:, :12], torch.cat(alone, 1), **NEAR)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_invisible(shape: str, position: str, side: str, tiny: Tiny, ids: Ids) -> None:
    model = tiny(shape, position=position, window=(6, None))
    short, long = ids(1, 5, seed=5), ids(1, 9, seed=9)
    pad, real = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool)
    padded = torch.cat([pad, short] if side == "left" else [short, pad], 1)
    mask = torch.cat([_mask(side), real])
    batch = torch.cat([padded, long])
    given: dict[str, Any] = {"source": batch, "source_mask": mask} if shape == "encoder_decoder" else {}
    together = model(batch, attention_mask=mask, **given).logits
    for row, alone in enumerate((short, long)):
        given = {"source": alone} if shape == "encoder_decoder" else {}
        torch.testing.assert_close(together[row][mask[row]], model(alone, **given).logits[0], **NEAR)


def _mask(side: str) -> Tensor:
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, 4:] = True
    return mask if side == "left" else mask.flip(1)


def test_zero_and_one_masks_mean_what_booleans_mean(tiny: Tiny, ids: Ids) -> None:
    model, mask = tiny(), _mask("right")
    torch.testing.assert_close(
        model(ids(1, 9), attention_mask=mask.long()), model(ids(1, 9), attention_mask=mask)
    )


@pytest.mark.parametrize("position", POSITIONS)
def test_a_prefix_of_token_vectors_is_as_good_as_the_tokens(position: str, tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(position=position), ids(2, 11)
    vectors = model.embed(read[:, :4]) * (model.config.embedding_scale or 1)
    out = model(read[:, 4:], prefix=vectors)
    torch.testing.assert_close(out.logits, model(read).logits[:, 4:], **NEAR)
    assert out.hidden.shape[1] == 7
    left = torch.cat([torch.zeros(2, 3, dtype=torch.long), read[:, 4:]], 1)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, :3] = False
    padded = model(left, prefix=vectors, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(padded, out.logits, **NEAR)


def test_a_prefix_passes_gradients_to_its_vectors(tiny: Tiny, ids: Ids) -> None:
    prefix = torch.randn(1, 3, 32, requires_grad=True)
    tiny().requires_grad_(False)(ids(1, 4), prefix=prefix).logits.sum().backward()
    assert prefix.grad is not None
    assert bool((prefix.grad != 0).all())


def test_prefix_lm_sees_its_first_segment_in_both_directions(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(attends="prefix"), ids(1, 10)
    segments = (torch.arange(10) >= 4).long()[None]
    with model.watch() as seen:
        model(read, segments=segments)
    for weights in seen.attention:
        visible = weights[0] > 0
        expected = torch.ones(10, 10, dtype=torch.bool).tril()
        expected[:4, :4] = True
        assert bool((visible == expected).all())
    torch.testing.assert_close(model(read).logits, tiny()(read).logits, **NEAR)


def test_prefix_lm_goes_on_from_a_cache(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(attends="prefix"), ids(2, 10)
    segments = (torch.arange(10) >= 4).long().expand(2, 10)
    whole = model(read, segments=segments).logits
    cache = model.new_cache(2, 10)
    parts = [model(read[:, :4], segments=segments[:, :4], cache=cache).logits]
    parts += [model(read[:, 4:], segments=segments[:, 4:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **NEAR)
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    ragged = torch.cat([torch.zeros(2, 1, dtype=torch.long), read[:, :4]], 1)
    ragged[1, :4], ragged[1, 4] = read[1, :4], read[1, 4]
    kinds = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    again = model(ragged, segments=kinds, attention_mask=mask, cache=model.new_cache(2, 10)).logits
    torch.testing.assert_close(again[0, 1:], whole[0, :4], **NEAR)
    torch.testing.assert_close(again[1], whole[1, :5], **NEAR)


def test_logits_are_made_for_as_many_positions_as_asked(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(2, 8)
    whole = model(read)
    assert model(read, last=0).logits.shape == (2, 0, 61)
    torch.testing.assert_close(model(read, last=1).logits, whole.logits[:, -1:], **NEAR)
    torch.testing.assert_close(model(read, last=3).logits, whole.logits[:, -3:], **NEAR)
    torch.testing.assert_close(model(read, last=0).hidden, whole.hidden)
    torch.testing.assert_close(model.logits(whole.hidden), whole.logits)


def test_logits_stay_under_their_cap(tiny: Tiny, ids: Ids) -> None:
    free, capped = tiny(logit_scale=9.0), tiny(logit_scale=9.0, logit_softcap=2.0)
    logits = free(ids(2, 8)).logits
    assert bool((logits.abs() > 2).any())
    torch.testing.assert_close(capped(ids(2, 8)).logits, 2 * torch.tanh(logits / 2), **NEAR)


@pytest.mark.parametrize("shape", SHAPES)
def test_watching_shows_weights_and_states_and_changes_nothing(shape: str, tiny: Tiny, ids: Ids) -> None:
    model, read, source = tiny(shape, position="relative", window=(4, None)), ids(2, 7), ids(2, 9, seed=1)
    given = {"source": source} if shape == "encoder_decoder" else {}
    plain = model(read, **given)
    assert plain.attention is None
    with model.watch() as seen:
        watched = model(read, **given)
    torch.testing.assert_close(watched.logits, plain.logits, **NEAR)
    assert watched.attention is not None
    assert len(watched.attention) == len(seen.attention) == 2
    for weights in seen.attention:
        assert weights.shape == (2, 4, 7, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
        if shape != "encoder":
            assert not bool(weights.triu(1).any())
    assert (
        float(seen.attention[0][..., 6, 2]) == 0 if False else not bool(seen.attention[0][..., 6, :3].any())
    )
    assert len(seen.hidden) == 3
    stack = model.decoder or model.encoder
    assert stack is not None and stack.norm is not None
    torch.testing.assert_close(stack.norm(seen.hidden[-1]), plain.hidden, **NEAR)
    if shape == "encoder_decoder":
        assert [weights.shape for weights in seen.decoder.cross] == [(2, 4, 7, 9)] * 2
        assert [weights.shape for weights in seen.encoder.attention] == [(2, 4, 9, 9)] * 2
    assert model(read, **given).attention is None


def test_watching_works_token_by_token(tiny: Tiny, ids: Ids) -> None:
    model, cache = tiny(), None
    cache = model.new_cache(1, 4)
    with model.watch() as seen:
        for i in range(4):
            model(ids(1, 4)[:, i : i + 1], cache=cache)
            assert seen.attention[0].shape == (1, 4, 1, i + 1)


def test_segments_matter_and_default_to_the_first(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny("encoder"), ids(2, 6)
    zeros = torch.zeros_like(read)
    torch.testing.assert_close(model(read, segments=zeros).logits, model(read).logits)
    assert not torch.allclose(model(read, segments=zeros + 1).logits, model(read).logits, atol=1e-2)


def test_memory_can_be_made_once_and_used_often(tiny: Tiny, ids: Ids) -> None:
    model, read, source = tiny("encoder_decoder"), ids(2, 6), ids(2, 8, seed=4)
    first = model(read, source=source)
    assert first.memory is not None
    torch.testing.assert_close(first.memory, model.encode(source))
    torch.testing.assert_close(model(read, memory=first.memory).logits, first.logits)


def test_arguments_that_do_not_belong_together_are_refused(tiny: Tiny, ids: Ids) -> None:
    read, reader, writer, both = ids(1, 4), tiny("encoder"), tiny(), tiny("encoder_decoder")
    with pytest.raises(ValueError, match="encoder-decoder"):
        writer(read, source=read)
    with pytest.raises(ValueError, match="needs source"):
        both(read)
    with pytest.raises(ValueError, match="needs source"):
        both(read, cache=both.new_cache(1, 4))
    with pytest.raises(ValueError, match="no use for a cache"):
        reader(read, cache=writer.new_cache(1, 4))
    with pytest.raises(ValueError, match="no use for a cache"):
        reader.new_cache(1, 4)
    with pytest.raises(ValueError, match="no document number"):
        writer(read, prefix=torch.zeros(1, 2, 32), attention_mask=torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="no encoder"):
        writer.encode(read)
    with pytest.raises(ValueError, match="no pair head"):
        writer.pair_logits(torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match="learned positions end at 64"):
        tiny(position="learned")(ids(1, 65))


@pytest.mark.parametrize("position", POSITIONS)
def test_bfloat16_stays_close_to_float32(position: str, tiny: Tiny, ids: Ids) -> None:
    model, read, mask = tiny(position=position), ids(2, 16), torch.ones(2, 16, dtype=torch.bool)
    exact = model(read).logits.detach()
    with torch.autocast("cpu", torch.bfloat16):
        automatic = model(read, attention_mask=mask).logits
    pure = copy.deepcopy(model).to(torch.bfloat16)(read, attention_mask=mask).logits
    assert automatic.dtype == pure.dtype == torch.bfloat16
    for rough in (automatic, pure):  # 8 bits of mantissa, some tens of roundings in a row
        assert float((rough.detach().float() - exact).norm() / exact.norm()) < 0.03


def test_casting_there_and_back_does_not_wear_positions_out(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.to(torch.bfloat16))
    before = model(ids(1, 12)).logits
    model.to(torch.bfloat16)(ids(1, 12))
    torch.testing.assert_close(model.float()(ids(1, 12)).logits, before)


@pytest.mark.parametrize("position", ["rope", "sinusoidal", "alibi"])
def test_training_goes_on_after_inference_mode(position: str, tiny: Tiny, ids: Ids) -> None:
    model = tiny(position=position)
    with torch.inference_mode():
        model(ids(1, 4))
    model(ids(1, 4)).logits.sum().backward()
    assert all(value.grad is not None for value in model.parameters())


def test_a_model_can_be_copied_and_its_weights_loaded(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(1, 8)
    expected = model(read).logits
    torch.testing.assert_close(copy.deepcopy(model)(read).logits, expected)
    fresh = Transformer(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(read).logits, expected)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_a_model_can_be_laid_out_before_it_has_memory(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    with torch.device("meta"):
        empty = Transformer(model.config)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    torch.testing.assert_close(empty.eval()(ids(1, 8)).logits, model(ids(1, 8)).logits)


def test_dropout_works_in_training_only(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(dropout=0.3), ids(1, 8)
    torch.testing.assert_close(model(read).logits, tiny()(read).logits)
    model.train()
    assert not torch.allclose(model(read).logits, model(read).logits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("unchecked")
def test_the_whole_model_compiles_without_a_break(shape: str, tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(shape, window=(4, None)), ids(2, 8)
    given = {"source": read} if shape == "encoder_decoder" else {}
    mask = torch.ones_like(read, dtype=torch.bool)
    expected = model(read, **given).logits  # also builds the position tables
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(read, **given).logits, expected)
    torch.testing.assert_close(compiled(read, attention_mask=mask, **given).logits, expected)


def test_a_tiny_model_learns_a_batch_by_heart(ids: Ids) -> None:
    from stockpot.model.config import decoder

    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=32, heads=4, context=16, vocab_size=61))
    read = ids(4, 17)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        logits = model(read[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), read[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05 < math.log(61)


def test_shape_annotations_are_alive_in_tests(tiny: Tiny) -> None:
    with pytest.raises(Exception, match="ids"):
        tiny()(torch.zeros(1, 2, 3, dtype=torch.long))
    with pytest.raises(Exception, match="ids"):
        tiny()(torch.zeros(1, 2))


def test_a_model_without_an_output_matrix_gives_hidden_states_only(tiny, ids):
    whole = tiny()
    bare = tiny(predicts=False)
    bare.load_state_dict(whole.state_dict())
    found = bare(ids(2, 9))
    assert torch.equal(found.hidden, whole(ids(2, 9)).hidden)
    assert found.logits.shape == (2, 0, 61)
    with pytest.raises(ValueError, match="no logits"):
        bare.logits(found.hidden)
    with pytest.raises(ConfigError, match="no masked_head"):
        tiny("encoder", predicts=False)
