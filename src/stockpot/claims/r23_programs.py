"""Row 23: a model translates C into Python, and the translation is run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from stockpot.bundle import Bundle
from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import trained
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.sandbox import run_tests
from stockpot.stages.sft import SFTConfig, sft
from stockpot.text.chat import Message
from stockpot.village import Village
from stockpot.weights.store import load

PROGRAMS, STEPS = 60, 120


def measure(material: Material) -> Sequence[Finding]:
    """Tune each cook's tuned model on small programs, and run what it writes, in a sandbox, against tests."""
    known: list[float] = []
    new: list[float] = []
    items = list(islice(Village().programs("val"), PROGRAMS))
    for cook, seed in zip(material.cooks, material.seeds, strict=False):
        out = material.out / f"programs-{seed}"
        config = SFTConfig(
            model=str(cook / "sft"),
            data=("village:programs",),
            loop={"steps": STEPS, "batch_tokens": 2048, "lr": 1e-3},
            seed=seed,
        )
        trained(sft, config, out, material)
        before, after = (_passed(load(model), items) for model in (cook / "sft", out))
        for found, kept in ((known, "none"), (new, "task")):
            places = [place for place, one in enumerate(items) if one["held_out"] == kept]
            found.append(sum(after[place] - before[place] for place in places) / len(places))
    n = PROGRAMS // 2
    return [
        above("programs that pass their tests, kinds seen in training: after minus before", known, 0.0, n=n),
        above("the same, kinds never seen (the addition of one among them)", new, 0.0, n=n),
    ]


def _passed(bundle: Bundle, items: Sequence[dict[str, Any]]) -> list[float]:
    prompts = [[Message("user", one["prompt"])] for one in items]
    written = Engine(bundle, slots=16).generate(prompts, Sampling(temperature=0.0, max_tokens=120))
    return [
        float("def " in reply.text and run_tests(reply.text, one["tests"], entry=[one["entry"]]).passed)
        for reply, one in zip(written, items, strict=True)
    ]


CLAIM = Claim(
    23,
    "programs",
    "A model translates C functions into Python that passes tests",
    "“add_one”, a C function that adds one with bit operations only, to Python (the lecture's slide)",
    "the cooks' tuned models, tuned on 5,000 small functions; translations are run against tests in a sandbox",
    measure,
    "Kinds of functions that were never shown need a model that knows both languages; one that has seen ten "
    "kinds of functions does not.",
)
