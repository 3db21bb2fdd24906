from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from stockpot.train.losses import Loss
from stockpot.train.meter import Meter
from stockpot.train.parallel import Group

CPU = torch.device("cpu")


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
    meter.count(100)
    assert meter.stall_s == pytest.approx(0.3, abs=0.1)
    assert meter.seconds() > 0.35
    # 100 tokens in 0.05 s; with the pause it would be 286 tokens/s
    assert 500 < meter.speed()["tokens_per_s"] <= 2000


def test_sums_survive_a_round_trip():
    one, other = (Meter(nn.Linear(1, 1), CPU, torch.float32) for _ in range(2))
    one.add(Loss(torch.tensor(6.0), 2))
    one.count(7)
    other.load_state_dict(one.state_dict())
    assert other.tokens == 7
    assert other.read(Group()) == one.read(Group())
