"""A model, the same with LoRA, and the same behind a soft prompt, served side by side."""

from __future__ import annotations

from dataclasses import replace

import torch

from stockpot.cli.serving import Serving, _named, _open
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.adapters import LoRA, attach
from stockpot.model.soft import attach_soft
from stockpot.text.chat import Message
from stockpot.weights.store import load, save, save_adapter

ASKED = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 12, "temperature": 0}


def changed(bundle):
    """Return a model with a LoRA that was trained far away."""
    attach(bundle.model, LoRA(rank=2))
    torch.manual_seed(7)
    with torch.no_grad():
        for param in bundle.model.parameters():
            if param.requires_grad:
                param.normal_(std=0.5)
    return bundle


def test_a_model_and_its_adapters_answer_each_in_its_way(make, run_server, tmp_path):
    base = save(tmp_path / "base", make())
    save_adapter(tmp_path / "lora", changed(load(base)), base)
    worn = load(base)
    soft = replace(worn, soft=tuple(attach_soft(worn.model, torch.randn(3, 32))))
    save_adapter(tmp_path / "soft", soft, base)
    words = [f"plain={base}", f"lora={base}+{tmp_path / 'lora'}", f"soft={base}+{tmp_path / 'soft'}"]
    models = {name: _open(ref, more, Serving()) for name, (ref, more) in map(_named, words)}
    with run_server(models) as one:
        texts = {}
        for name, bundle in models.items():
            _, found = one.post("/v1/chat/completions", ASKED | {"model": name})
            texts[name] = found["choices"][0]["message"]["content"]
            (right,) = Engine(bundle).generate(
                [[Message("user", "the cat")]], Sampling(temperature=0, max_tokens=12)
            )
            assert (found["model"], texts[name]) == (name, right.text)
    assert len(set(texts.values())) == 3
