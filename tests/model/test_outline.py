"""An outline has every name and shape of a model, and costs neither memory nor torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stockpot.model import config
from stockpot.model.outline import outline
from stockpot.model.transformer import Transformer


@pytest.mark.parametrize("shape", ["decoder", "encoder", "encoder_decoder"])
def test_an_outline_names_what_a_model_has(shape):
    described = getattr(config, shape)(layers=2, dim=32, heads=4, vocab_size=50, tied=False)
    real, drawn = Transformer(described), outline(described)
    shapes = {name: param.shape for name, param in real.named_parameters()}
    assert {name: param.shape for name, param in drawn.named_parameters()} == shapes
    assert {param.device.type for param in drawn.parameters()} == {"meta"}
    filled = {name: torch.ones(size) for name, size in shapes.items()}
    drawn.load_state_dict(filled, strict=True, assign=True)
    assert torch.equal(drawn.embed.weight, torch.ones(50, 32))


def test_an_outline_does_not_load_the_compiler():
    code = (
        "import sys\nfrom stockpot.model.config import decoder\nfrom stockpot.model.outline import outline\n"
        "outline(decoder(layers=1, dim=32, heads=4, vocab_size=50, tied=False))\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
