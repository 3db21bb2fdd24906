"""Token log-probabilities: those of a plain softmax, with its gradients, and no logits kept."""

from __future__ import annotations

import pytest
import torch

from stockpot.data.batch import IGNORED, Batch
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.log_probs import label_log_probs, linear_log_probs


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probabilities_and_gradients_are_those_of_a_plain_softmax(softcap, frozen):
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=not frozen)
    bias, labels = torch.randn(11, dtype=torch.float64), torch.randint(0, 11, (7,))
    arriving = torch.randn(7, dtype=torch.float64)

    found, entropy = linear_log_probs(hidden, weight, labels, bias=bias, softcap=softcap, chunk=3)
    (found * arriving).sum().backward()
    grads = [hidden.grad.clone(), None if frozen else weight.grad.clone()]
    hidden.grad = weight.grad = None

    logits = hidden @ weight.T + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wanted = logits.log_softmax(-1)
    (wanted.gather(1, labels[:, None]).squeeze(1) * arriving).sum().backward()
    torch.testing.assert_close(found, wanted.gather(1, labels[:, None]).squeeze(1))
    torch.testing.assert_close(entropy, -(wanted.exp() * wanted).sum(1))
    torch.testing.assert_close(grads[0], hidden.grad)
    if not frozen:
        torch.testing.assert_close(grads[1], weight.grad)


def test_only_counted_labels_are_judged_and_answers_are_summed():
    torch.manual_seed(0)
    model = Transformer(decoder(layers=1, dim=16, heads=2, context=8, vocab_size=12, zero_init=False))
    ids = torch.tensor([[1, 2, 3, 4, 3, 5], [6, 7, 0, 0, 0, 0]])
    labels = torch.tensor(
        [[IGNORED, 3, 4, IGNORED, 5, IGNORED], [7, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED]]
    )
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    branches = torch.tensor([[0, 1, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0]])
    answers = torch.tensor([[-1, 0, 0, 0, 1, 1], [2, 2, -1, -1, -1, -1]])
    batch = Batch(ids, labels, mask, branches=branches, answers=answers)
    found = label_log_probs(model, batch)
    sums, tokens = found.per_answer(batch)
    assert tokens.tolist() == [2.0, 1.0, 1.0]

    def alone(text, answer):
        logits = model(torch.tensor([text + answer])).logits[0].log_softmax(-1)
        return sum(logits[len(text) - 1 + i, token] for i, token in enumerate(answer))

    wanted = torch.stack([alone([1, 2], [3, 4]), alone([1, 3], [5]), alone([6], [7])])
    torch.testing.assert_close(sums, wanted, atol=1e-5, rtol=1e-5)
    spread = found.spread(found.log_probs, labels)
    assert (spread != 0).tolist() == (labels != IGNORED).tolist()


def test_without_gradients_nothing_is_kept():
    hidden, weight = torch.randn(4, 3), torch.randn(6, 3, requires_grad=True)
    with torch.no_grad():
        found, _ = linear_log_probs(hidden, weight, torch.tensor([0, 1, 2, 3]))
    assert found.grad_fn is None
