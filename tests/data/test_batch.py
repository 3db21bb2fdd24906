from __future__ import annotations

import torch

from stockpot.data.batch import Batch, PreferenceBatch


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


def test_a_pair_of_answers_moves_together():
    ids = torch.zeros(2, 4, dtype=torch.int64)
    pair = PreferenceBatch(Batch(ids, ids), Batch(ids[:, :3], ids[:, :3]), margin=torch.ones(2))
    moved = pair.to("meta")
    assert (
        moved.chosen.ids.device == moved.rejected.labels.device == moved.margin.device == torch.device("meta")
    )
    assert pair.tokens == moved.tokens == 14
