"""Several continuations of one text in one call are what each would be by itself."""

from __future__ import annotations

import pytest
import torch

from stockpot.model.config import decoder
from stockpot.model.masks import branch_positions
from stockpot.model.transformer import Transformer

KINDS = [
    {},
    {"position": "learned"},
    {"position": "sinusoidal"},
    {"position": "alibi"},
    {"position": "relative"},
    {"position": "none"},
    {"window": (3, None)},
    {"kv_heads": 1, "qk_norm": None},
]
TEXTS = [([1, 2, 3, 4], [[5, 6, 7], [8, 9]]), ([9, 8], [[7], [6, 5, 4, 3]]), ([], [[3, 2], [2]])]


def joined(texts):
    """Put texts with their branches into one row: ids, documents, branches."""
    ids, documents, branches = [], [], []
    for number, (text, continuations) in enumerate(texts, 1):
        for branch, part in enumerate([text, *continuations]):
            ids += part
            documents += [number] * len(part)
            branches += [branch] * len(part)
    return tuple(torch.tensor([values]) for values in (ids, documents, branches))


def test_positions_go_on_from_the_end_of_the_text():
    _, documents, branches = joined(TEXTS)
    wanted = [0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2, 2, 3, 4, 5, 0, 1, 0]
    assert branch_positions(documents, branches).tolist() == [wanted]
    padded = torch.nn.functional.pad(documents, (0, 2)), torch.nn.functional.pad(branches, (0, 2))
    assert branch_positions(*padded).tolist() == [[*wanted, 0, 0]]
    alone = torch.tensor([[0, 0, 1, 2, 2]])
    assert branch_positions(None, alone).tolist() == [[0, 1, 2, 2, 3]]


@pytest.mark.parametrize("choices", KINDS, ids=str)
@pytest.mark.parametrize("trains", [False, True])
def test_branches_equal_the_texts_one_by_one(choices, trains):
    torch.manual_seed(0)
    model = Transformer(
        decoder(
            **{
                "layers": 2,
                "dim": 16,
                "heads": 2,
                "context": 8,
                "vocab_size": 12,
                "zero_init": False,
                **choices,
            }
        )
    )
    ids, documents, branches = joined(TEXTS)
    with torch.set_grad_enabled(trains):
        found = model(ids, attention_mask=documents, branches=branches).logits[0]
        at = 0
        for text, continuations in TEXTS:
            after = at + len(text)
            for part in continuations:
                alone = model(torch.tensor([text + part])).logits[0]
                whole = torch.cat((found[at : at + len(text)], found[after : after + len(part)]))
                torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
                after += len(part)
            at = after


def test_gradients_are_the_sum_over_the_texts():
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=16, heads=2, context=8, vocab_size=12, zero_init=False))
    text, continuations = TEXTS[0]
    ids, documents, branches = joined(TEXTS[:1])
    weights = torch.randn(ids.shape[1], 12)
    (model(ids, attention_mask=documents, branches=branches).logits[0] * weights).sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    at = len(text)
    for number, part in enumerate(continuations):
        logits = model(torch.tensor([text + part])).logits[0]
        if number == 0:
            (logits[: len(text)] * weights[: len(text)]).sum().backward(retain_graph=True)
        (logits[len(text) :] * weights[at : at + len(part)]).sum().backward()
        at += len(part)
    for one, other in zip(together, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_where_branches_cannot_be_they_are_refused():
    model = Transformer(decoder(layers=1, dim=16, heads=2, context=8, vocab_size=12))
    ids, _, branches = joined(TEXTS[:1])
    with pytest.raises(ValueError, match="branches"):
        model(ids, branches=branches, cache=model.new_cache(1, 16))
