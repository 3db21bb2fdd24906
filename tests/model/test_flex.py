"""What FlexAttention is told is what the mask says."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from stockpot.model.config import decoder
from stockpot.model.flex import sees
from stockpot.model.masks import branch_positions, visible
from stockpot.model.transformer import Transformer

DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
BRANCHES = torch.tensor([[0, 0, 1, 0, 0, 1, 2, 0, 0, 0], [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]])


@pytest.mark.parametrize(
    ("causal", "window", "branched"),
    [(True, None, False), (False, None, False), (True, 3, False), (True, None, True)],
)
def test_blocks_and_masks_see_the_same(causal, window, branched):
    branches = BRANCHES if branched else None
    places = branch_positions(DOCUMENTS, BRANCHES) if branched else torch.arange(10)[None]
    mask = visible(
        places,
        places,
        causal=causal,
        window=window,
        documents=(DOCUMENTS, DOCUMENTS),
        branches=None if branches is None else (branches, branches),
    )
    rule = sees(DOCUMENTS, branches, causal=causal, window=window)
    told = create_mask(rule, 2, None, 10, 10, device="cpu").expand(2, 1, 10, 10)
    real = (DOCUMENTS != 0)[:, None, :, None]  # what padding sees is nobody's business
    assert torch.equal(told & real, mask & real)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
def test_a_gpu_computes_the_same_with_blocks(unchecked):
    torch.manual_seed(0)
    model = Transformer(
        decoder(layers=2, dim=128, heads=2, context=256, vocab_size=64, zero_init=False)
    ).cuda()
    ids = torch.randint(0, 64, (2, 256), device="cuda")
    documents = torch.arange(256, device="cuda").div(100, rounding_mode="floor").add(1).expand(2, -1)
    masked = model(ids, attention_mask=documents).logits
    model.decoder.flex = True
    blocked = model(ids, attention_mask=documents).logits
    torch.testing.assert_close(blocked, masked, rtol=1e-3, atol=1e-3)
    blocked.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
