from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch import nn

from stockpot.model.config import decoder
from stockpot.model.layers import Block
from stockpot.model.transformer import Transformer
from stockpot.train.stacks import set_up


@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
def test_the_tenth_model_of_a_process_is_compiled_like_the_first(unchecked, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # torch's own, and back to it afterwards
    whole = {"backend": "eager", "fullgraph": True}  # past the limit this raises
    monkeypatch.setattr(Block, "compile", partialmethod(nn.Module.compile, **whole))
    for heads in range(1, 11):
        model = Transformer(decoder(layers=1, dim=8 * heads, heads=heads, context=8, vocab_size=9))
        set_up(model, torch.device("cpu"), compiles=True)
        assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 9)
