from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stockpot.data.batch import IGNORED, Batch, PreferenceBatch
from stockpot.model.adapters import LoRA, attach
from stockpot.model.config import decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.train.losses import Loss
from stockpot.train.meter import Meter, batch_flops
from stockpot.train.parallel import Group

CPU = torch.device("cpu")
IDS = torch.zeros(10, 10, dtype=torch.int64)
SHAPES = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder}


def test_means_are_quotients_of_sums():
    meter = Meter(nn.Linear(1, 1), CPU, torch.float32)
    meter.add(Loss(torch.tensor(6.0), 2, {"accuracy": (torch.tensor(1), 2)}))
    meter.add(Loss(torch.tensor(2.0), 6, {"accuracy": (torch.tensor(2), torch.tensor(6)), "none": (0.0, 0)}))
    assert meter.read(Group()) == {"loss": 1.0, "accuracy": 3 / 8}
    assert meter.read(Group()) == {}


def test_pauses_do_not_slow_the_speed_but_count_as_time():
    meter = Meter(nn.Linear(1, 1), CPU, torch.float32)
    time.sleep(0.05)
    with meter.pause(is_stall=True):
        time.sleep(0.3)
    meter.count([Batch(IDS, IDS)], Group())
    assert meter.stall_s == pytest.approx(0.3, abs=0.1)
    assert meter.seconds() > 0.35
    # 100 tokens in 0.05 s; with the pause it would be 286 tokens/s
    assert 500 < meter.speed()["tokens_per_s"] <= 2000


def test_sums_survive_a_round_trip():
    one, other = (Meter(nn.Linear(1, 1), CPU, torch.float32) for _ in range(2))
    one.add(Loss(torch.tensor(6.0), 2))
    one.count([Batch(IDS, IDS)], Group())
    other.load_state_dict(one.state_dict())
    assert other.tokens == 100
    assert other.read(Group()) == one.read(Group())


# --- arithmetic ---


def tiny(shape: str = "decoder", **choices: int) -> Transformer:
    return Transformer(
        SHAPES[shape](**{"layers": 2, "dim": 32, "heads": 2, "context": 16, "vocab_size": 50, **choices})
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rows_whose_labels_all_count_take_what_the_config_says_of_a_token(shape):
    model, ids = tiny(shape), torch.zeros(3, 16, dtype=torch.int64)
    batch = Batch(ids, ids, source=ids if shape == "encoder_decoder" else None)
    assert batch_flops(model, batch) == pytest.approx(model.config.flops_per_token(16) * 48)


def test_padding_and_labels_that_do_not_count_cost_nothing():
    model, ids = tiny(), torch.zeros(2, 16, dtype=torch.int64)
    real = torch.arange(16) < torch.tensor([[16], [0]])
    one = batch_flops(model, Batch(ids[:1], ids[:1]))
    padded = Batch(ids, torch.where(real, ids, IGNORED), real)
    assert batch_flops(model, padded) == pytest.approx(one)
    assert batch_flops(model, PreferenceBatch(padded, torch.ones(1))) == pytest.approx(one)
    assert batch_flops(model, Batch(ids[:1], torch.full((1, 16), IGNORED))) < one


def test_a_frozen_model_takes_what_its_passes_take():
    """Counted by torch: forward, and backward through every layer but to no frozen weight."""
    torch.manual_seed(0)
    model, ids = tiny(dim=64, context=64).double(), torch.randint(0, 50, (4, 48))  # in torch's own operations
    batch = Batch(ids, ids)
    attach(model, LoRA(rank=1, targets=("query",)))
    seen = Meter(model, CPU, torch.float32)
    seen.count([batch], Group())
    with FlopCounterMode(display=False) as counter, model.watch():
        model(ids).logits.sum().backward()
    assert seen.flops == pytest.approx(counter.get_total_flops(), rel=0.06)  # the first layer needs less
    assert seen.flops < 0.75 * batch_flops(model, batch)


def test_short_texts_do_not_count_as_if_they_filled_the_context():
    """Attention of 8,192 positions was counted for questions of fifty tokens: an MFU of 319 %."""
    model, ids = tiny(context=8192), torch.zeros(2, 8, dtype=torch.int64)
    assert batch_flops(model, Batch(ids, ids)) < 0.1 * model.config.flops_per_token() * 16


def test_what_is_no_text_has_no_share_of_the_peak():
    meter = Meter(nn.Linear(1, 1), CPU, torch.float32)
    meter.count([Batch(IDS, IDS)], Group())
    assert meter.flops == 0 and "mfu" not in meter.speed()
