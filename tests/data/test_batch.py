from __future__ import annotations

import torch

from stockpot.data.batch import Batch, PreferenceBatch, RolloutBatch


def test_tokens_are_the_real_ones_of_both_stacks():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    assert Batch(ids, ids).tokens == 8
    documents = torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]])
    assert Batch(ids, ids, documents).tokens == 4
    assert Batch(ids, ids, documents, source=ids[:, :3], source_mask=ids[:, :3] == 0).tokens == 10


def test_moving_moves_every_tensor_and_keeps_the_count():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    batch = Batch(ids, ids, ids == 0, segments=ids, pair_labels=ids[:, 0])
    moved = batch.to("meta")
    assert {moved.ids.device.type, moved.segments.device.type, moved.pair_labels.device.type} == {"meta"}
    assert moved.source is None
    assert moved.tokens == batch.tokens == 8


def test_labels_that_count_are_counted_before_a_batch_moves():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    batch = Batch(ids, torch.tensor([[1, -100, 0, 2], [-100, -100, -100, 3]]))
    assert batch.to("meta").counted == batch.counted == 4
    assert batch.to("meta").to("meta").counted == 4  # where nobody could count them


def test_a_pair_of_answers_moves_together():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    pair = PreferenceBatch(Batch(ids, ids, answers=ids), torch.ones(2), margin=torch.ones(2))
    moved = pair.to("meta")
    assert moved.texts.answers.device == moved.chance.device == moved.margin.device == torch.device("meta")
    assert pair.tokens == moved.tokens == 8
    assert moved.ids is moved.texts.ids


def test_rollouts_move_together():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    values = torch.ones(2, 4)
    moved = RolloutBatch(Batch(ids, ids), values, values, old_values=values, ends_step=False).to("meta")
    assert moved.old_values.device == moved.ids.device == torch.device("meta")
    assert moved.returns is None
    assert not moved.ends_step
