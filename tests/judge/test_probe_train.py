"""Probes on planted states: they find the layer that holds the answer, and training side by side changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot.judge.probe_score import Tally, draw_weights, located, scores_of
from stockpot.judge.probe_states import States
from stockpot.judge.probe_train import Labelled, ProbeConfig, Shape, train_probes

PASSAGES, TOKENS, LAYERS, DIM = 120, 6, 4, 12
CONFIG = ProbeConfig(width=8, epochs=6, batch_tokens=96, lr=0.02, dtype="float32")


def planted(layer=2, slots=1, seed=0):
    """States of noise, but for one layer, where the label of a token is the sign of its first unit."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(PASSAGES * TOKENS, LAYERS, DIM)).astype(np.float16)
    starts = np.arange(PASSAGES + 1) * TOKENS
    words = [tuple((t, t + 1) for t in range(TOKENS))] * PASSAGES
    states = States(values, starts, words, tuple(range(LAYERS)), 0)
    spans, labels = [], []
    for number in range(PASSAGES):
        at = rng.integers(0, TOKENS, size=(4, slots))
        spans.append(np.stack([at, at + 1], -1))
        sign = (values[starts[number] + at, layer, 0] > 0).astype(np.int64)
        real = sign.sum(1) % 2
        labels.append(np.stack([real, rng.integers(0, 2, 4)]))
    return states, Labelled(tuple(range(PASSAGES)), tuple(spans), tuple(labels), 2)


def shape_of(masks, control=False):
    masks = np.array(masks, np.bool_)
    return Shape(masks, np.zeros(len(masks), np.int64), np.full(len(masks), control))


def parts(data):
    return data.part(range(90)), data.part(range(90, PASSAGES))


CUMULATIVE = np.tril(np.ones((LAYERS, LAYERS)))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_the_layer_that_holds_the_answer_is_found(kind):
    states, data = planted()
    train, test = parts(data)
    probes = train_probes(states, train, shape_of(CUMULATIVE), CONFIG.model_copy(update={"kind": kind}))
    judged = probes.judge(states, test)
    shares = judged.right.mean(1)
    assert (shares[:2] < 0.65).all() and (shares[2:] > 0.85).all()
    place, _ = located(
        scores_of(Tally.of(judged.right, judged.owners, 1), draw_weights(PASSAGES)), range(LAYERS)
    )
    assert place.low < 2 < place.high and place.value == pytest.approx(2, abs=0.35)
    assert int(probes.weights()[-1].argmax()) == 2


def test_a_pair_of_spans_is_told_from_both():
    states, data = planted(slots=2)
    train, test = parts(data)
    config = CONFIG.model_copy(update={"epochs": 40, "width": 16})
    judged = train_probes(states, train, shape_of([[0, 0, 1, 0]]), config).judge(states, test)
    assert judged.right.mean() > 0.8  # the label is the exclusive or of two signs: no single span tells it


def test_control_labels_cannot_be_learned_from_states_that_do_not_hold_them():
    states, data = planted()
    train, test = parts(data)
    judged = train_probes(states, train, shape_of([[1, 1, 1, 1]], control=True), CONFIG).judge(states, test)
    assert 0.35 < judged.right.mean() < 0.65


def test_probes_side_by_side_are_the_probes_alone():
    states, data = planted()
    train, test = parts(data)
    together = train_probes(states, train, shape_of(CUMULATIVE), CONFIG).judge(states, test)
    alone = train_probes(states, train, shape_of(CUMULATIVE[2:3]), CONFIG).judge(states, test)
    assert np.array_equal(together.owners, alone.owners)
    assert np.allclose(
        together.nats[2], alone.nats[0], atol=1e-3
    )  # sums in another order, over some 70 steps


def test_half_the_digits_find_the_same_layer():
    states, data = planted()
    train, test = parts(data)
    config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    shares = train_probes(states, train, shape_of(CUMULATIVE), config).judge(states, test).right.mean(1)
    assert (shares[:2] < 0.65).all() and (shares[2:] > 0.85).all()


def test_a_probe_sees_only_its_layers():
    states, data = planted()
    train, _ = parts(data)
    probes = train_probes(states, train, shape_of([[1, 0, 1, 0]]), CONFIG)
    assert probes.weights()[0, [1, 3]].tolist() == [0, 0]
    assert probes.weights().sum().item() == pytest.approx(1)


def test_spans_are_pooled_over_their_tokens_only():
    states, data = planted()
    longer = Labelled(
        (0, 1), (np.array([[[1, 3]]]), np.array([[[0, 2]]])), (np.zeros((2, 1), np.int64),) * 2, 2
    )
    probes = train_probes(states, parts(data)[0], shape_of([[0, 0, 1, 0]]), CONFIG)
    before = probes.judge(states, longer).nats
    states.values[[0, 3, 4, 5, TOKENS + 2]] += 3.0  # tokens outside both spans
    assert np.allclose(before, probes.judge(states, longer).nats, atol=1e-5)
    states.values[2] += 3.0
    assert not np.allclose(before[:, 0], probes.judge(states, longer).nats[:, 0], atol=1e-3)


def test_a_label_that_was_never_learned_counts_as_wrong():
    states, data = planted()
    train, test = parts(data)
    labels = tuple(np.full_like(one, -1) for one in test.labels)
    probes = train_probes(states, train, shape_of([[1, 1, 1, 1]]), CONFIG)
    judged = probes.judge(states, Labelled(test.passages, test.spans, labels, 2))
    assert not judged.right.any() and np.isnan(judged.nats).all()


def test_training_leaves_global_randomness_alone():
    states, data = planted()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train_probes(
        states, data.part(range(8)), shape_of([[1, 1, 1, 1]]), CONFIG.model_copy(update={"epochs": 1})
    )
    assert torch.equal(before, torch.random.get_rng_state())
