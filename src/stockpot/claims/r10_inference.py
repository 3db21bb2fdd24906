"""Row 10: one token after another, with a cache that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from stockpot.bundle import Bundle
from stockpot.claims.claim import Claim, Finding, Material, held
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.village import Village
from stockpot.weights.store import load

PROMPTS, TOKENS = 20, 16


@torch.inference_mode()
def measure(material: Material) -> Sequence[Finding]:
    """Write greedily with the engine, and by computing everything anew for each token."""
    equal, streamed = [], []
    for cook in material.cooks:
        bundle = load(cook / "pretrain", dtype="float32")
        asked = [bundle.encode(one["text"])[:12] for one in islice(Village().documents("val"), PROMPTS)]
        engine = Engine(bundle)
        sampling = Sampling(temperature=0.0, max_tokens=TOKENS)
        written = [list(one.ids) for one in engine.generate(asked, sampling)]
        equal.append(float(all(_plain(bundle, a, len(w)) == w for a, w in zip(asked, written, strict=True))))
        parts = [i for chunk in engine.stream(asked[0], sampling) for i in chunk.ids]
        streamed.append(float(parts == written[0]))
    return [
        held("greedy answers with a cache equal those without", equal, n=PROMPTS),
        held("a streamed answer equals a whole one", streamed),
    ]


def _plain(bundle: Bundle, ids: list[int], count: int) -> list[int]:
    whole = list(ids)
    for _ in range(count):
        whole.append(int(bundle.model(torch.tensor([whole])).logits[0, -1].argmax()))
    return whole[len(ids) :]


CLAIM = Claim(
    10,
    "inference",
    "Logits, softmax, argmax, feed back: the cache changes nothing",
    "the lecture's loop of autoregressive inference",
    "the cooks' base models, twenty prompts, sixteen tokens each, float32",
    measure,
    on_base=True,
)
