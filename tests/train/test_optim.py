from __future__ import annotations

import pytest
import torch
from torch import nn

from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.muon import orthogonalise
from stockpot.train.optim import OptimConfig, Optimizer


def tiny():
    torch.manual_seed(0)
    return Transformer(decoder(layers=2, dim=32, heads=2, context=16, vocab_size=50))


def test_every_trainable_parameter_has_exactly_one_update_rule():
    model = tiny()
    optimizer = Optimizer(model, OptimConfig(), 10)
    adamw = [p for group in optimizer._adamw.param_groups for p in group["params"]]
    muon = [matrix.parameter for matrix in optimizer._muon.matrices]
    assert sorted(map(id, adamw + muon)) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in muon)
    assert any(p is model.embed.weight for p in adamw)


def test_fused_products_are_made_orthogonal_part_by_part():
    optimizer = Optimizer(tiny(), OptimConfig(), 10)
    parts = {matrix.parameter.shape[0]: matrix.parts for matrix in optimizer._muon.matrices}
    assert parts[96] == (32, 32, 32)  # queries, keys, values


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 32, 128), (2, 128, 32)])
def test_orthogonalising_brings_singular_values_near_one_and_keeps_the_vectors(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    out = orthogonalise(matrices, iterations=8, dtype=torch.float32)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(out, u @ v, atol=0.05, rtol=0)


def test_scaling_divides_by_the_count_and_clips_the_whole_gradient():
    model = nn.Linear(2, 1, bias=False)
    optimizer = Optimizer(model, OptimConfig(optimizer="adamw", clip_norm=1.0), 10)
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    norm = optimizer.scale(torch.tensor(10.0))
    assert float(norm) == pytest.approx(5.0)  # of (3, 4)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_small_gradients_are_not_clipped():
    model = nn.Linear(2, 1, bias=False)
    optimizer = Optimizer(model, OptimConfig(optimizer="adamw", clip_norm=1.0), 10)
    model.weight.grad = torch.tensor([[0.3, 0.4]])
    optimizer.scale(torch.tensor(1.0))
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.3, 0.4]]))


def test_adamw_equals_torchs_own():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(
        optimizer="adamw", lr=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.1, eps=1e-8
    )
    optimizer = Optimizer(ours, config, 5)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.1},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(config.beta1, config.beta2), eps=1e-8)
    x = torch.randn(8, 4)
    for step in range(5):
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().sum().backward()
        optimizer.step(step)
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
