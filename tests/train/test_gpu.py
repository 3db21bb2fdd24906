"""Training on a GPU is the same computation as on a CPU."""

from __future__ import annotations

import pytest
import torch

from stockpot.data.batch import Batch
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss


def losses(device, **loop):
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=64, heads=2, context=32, vocab_size=128)).to(device)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 128, (8, 33), generator=generator) % 17 for _ in range(12)]
    found = []
    config = LoopConfig(steps=12, batch_tokens=8 * 32, log_every=1, **loop)
    fit(
        model,
        (Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in rows),
        next_token_loss,
        config,
        progress=lambda event: found.append(event["loss"]) if event["kind"] == "step" else None,
    )
    return torch.tensor(found)


@pytest.mark.gpu
def test_the_loss_falls_as_on_a_cpu():
    on_cpu = losses("cpu", dtype="float32")
    assert len(on_cpu) == 12
    torch.testing.assert_close(losses("cuda", dtype="float32"), on_cpu, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(losses("cuda", dtype="bfloat16"), on_cpu, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
def test_the_loss_of_compiled_layers_falls_alike(unchecked):
    plain = losses("cuda", dtype="bfloat16")
    torch.testing.assert_close(losses("cuda", dtype="bfloat16", compile=True), plain, rtol=3e-2, atol=3e-2)
