"""Tiny random models of the reference library, and the three questions asked of every family."""

from __future__ import annotations

import json

import torch

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.weights.store import load_model, save_model

# float32, a dozen products of width 32: rounding is near 1e-6 of values of size 1
NEAR = {"atol": 1e-5, "rtol": 1e-5}
VOCAB = 340


def lively(model):
    """Move gains and biases away from ones and zeros, which would hide mix-ups."""
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(0.1 * torch.randn_like(param))
    return model.eval()


def reference(transformers, family, head, **choices):
    """Build ``{family}{head}`` with settings ``choices``."""
    config = getattr(transformers, f"{family}Config")(**choices)
    torch.manual_seed(0)
    return lively(getattr(transformers, f"{family.removesuffix('Text')}{head}")(config))


def some_ids(batch=2, seq=40):
    return torch.randint(3, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(1))


def comes_back(transformers, theirs, folder, *, family=None, unread=()):
    """Load what they wrote, write it, and open that with them: the same class, with nothing missing.

    ``unread`` names what we pass over, and they therefore miss.
    """
    theirs.save_pretrained(folder / "theirs")
    save_model(folder / "ours", load_model(folder / "theirs"), family=family)
    again, report = type(theirs).from_pretrained(folder / "ours", output_loading_info=True)
    report = {key: sorted(value) for key, value in report.items() if value}
    assert report == ({"missing_keys": sorted(unread)} if unread else {})
    config = json.loads((folder / "ours" / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]
    assert config["model_type"] == theirs.config.model_type
    return again.eval()


def same_greedy_tokens(theirs, folder, tokenizer):
    """Continue a few prompts greedily, ours all at once, theirs one by one."""
    engine = Engine(Bundle(load_model(folder), tokenizer))
    prompts = [[5, 6, 7], [8] * 9, [300]]
    found = engine.generate(prompts, Sampling(temperature=0, max_tokens=20, min_tokens=20))
    for prompt, one in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=20,
            max_new_tokens=20,
            pad_token_id=0,
            eos_token_id=sorted(engine.bundle.stop_ids),
        )
        assert one.ids == tuple(expected[0, len(prompt) :].tolist())
