"""Soft prompts behind the vocabulary compute what the model's own door for embeddings computes."""

from __future__ import annotations

import pytest
import torch

from stockpot.model.config import decoder
from stockpot.model.soft import attach_soft, detach_soft, soft_ids, soft_vectors
from stockpot.model.transformer import Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 32, "heads": 2, "context": 64, "vocab_size": 50}
    return Transformer(decoder(**sizes, zero_init=False)).eval()


@pytest.mark.parametrize("scale", [None, 5.5])
def test_soft_ids_are_the_prefix(scale):
    torch.manual_seed(0)
    config = decoder(layers=2, dim=32, heads=2, context=64, vocab_size=50, zero_init=False)
    model = Transformer(config.model_copy(update={"embedding_scale": scale})).eval()
    vectors, ids = torch.randn(4, 32), torch.randint(50, (2, 7))
    with torch.inference_mode():
        expected = model(ids, prefix=vectors.expand(2, 4, 32)).logits
    soft = torch.tensor(list(attach_soft(model, vectors)))
    with torch.inference_mode():
        found = model(torch.cat((soft.expand(2, 4), ids), dim=1)).logits
    assert found.shape[-1] == 50, "no logit belongs to a soft prompt"
    assert torch.allclose(found[:, 4:], expected, atol=1e-5)


def test_without_its_ids_nothing_changes_and_off_it_is_the_model_again(model):
    ids = torch.randint(50, (1, 5))
    names = set(model.state_dict())
    with torch.inference_mode():
        before = model(ids).logits
        attach_soft(model, torch.randn(3, 32))
        assert torch.equal(model(ids).logits, before)
        detach_soft(model)
        assert torch.equal(model(ids).logits, before)
    assert set(model.state_dict()) == names
    assert soft_ids(model) == range(0)
    assert all(one.requires_grad for one in model.parameters())


def test_only_the_vectors_are_trained(model):
    attach_soft(model, torch.randn(3, 32))
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["embed.soft"]
    ids = torch.tensor([[50, 51, 52, 1, 2]])
    model(ids).logits.sum().backward()
    assert float(soft_vectors(model).grad.abs().sum()) > 0
    assert model.output_weight.grad is None


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="no soft prompt"):
        soft_vectors(model)
    with pytest.raises(ValueError, match="width 32"):
        attach_soft(model, torch.randn(3, 16))
    attach_soft(model, torch.randn(3, 32))
    with pytest.raises(ValueError, match="already"):
        attach_soft(model, torch.randn(3, 32))
