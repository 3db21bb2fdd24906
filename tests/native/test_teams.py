"""The libraries of kernels live in one process, each with threads of its own kind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stockpot.native.calls import kernels
from stockpot.native.texts import text_kernels

IN_TURNS = """
import copy

import torch
from stockpot.model import native_stack
from stockpot.model.config import decoder
from stockpot.model.quantized import quantize
from stockpot.model.transformer import Transformer

torch.set_num_threads(3)
native_stack.WORTH_COMPILING = 0
model = Transformer(decoder(layers=1, dim=64, heads=2, vocab_size=50, context=64)).eval()
ids = torch.arange(40).view(2, 20)
with torch.inference_mode():
    model(ids)
rounded = quantize(copy.deepcopy(model), 8)
with torch.inference_mode():
    for one in (model, rounded, model, rounded):
        print(tuple(one(ids, cache=one.new_cache(2, 30)).logits.shape))
        torch.randn(300, 300) @ torch.randn(300, 300)
"""


@pytest.mark.skipif(
    kernels() is None or text_kernels() is None, reason="the kernels could not be compiled here"
)
def test_floats_and_digits_take_turns_in_one_process():
    """A library that took the other's team would wait for members that never come."""
    told = subprocess.run(
        [sys.executable, "-c", IN_TURNS], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert told.splitlines() == ["(2, 20, 50)"] * 4
