"""Row 16: steps before the answer make sums come out right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import open_stage
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.metrics import exact_match, final_answer
from stockpot.prompt.items import load_pool
from stockpot.prompt.steps import TRIGGER
from stockpot.prompt.wordings import find_asking
from stockpot.text.chat import Message

ITEMS = 150


def measure(material: Material) -> Sequence[Finding]:
    """Ask the tuned models sums of two steps, at once and step by step; weigh the answer behind given steps."""
    gain, weighed = [], []
    pool = load_pool(find_asking("sums"), "village:steps", limit=ITEMS)
    items = list(islice(pool.questions, ITEMS))
    for cook in material.cooks:
        engine = Engine(open_stage(cook, "sft"), slots=16)
        asked = [item.fields["question"] for item in items]
        short, long = Sampling(temperature=0.0, max_tokens=12), Sampling(temperature=0.0, max_tokens=72)
        at_once = engine.generate([[Message("user", f"{one} Give a short answer.")] for one in asked], short)
        thought = engine.generate([[Message("user", f"{one} {TRIGGER}")] for one in asked], long)
        right = [
            [
                exact_match(final_answer(reply.text), item.answer)
                for reply, item in zip(replies, items, strict=True)
            ]
            for replies in (at_once, thought)
        ]
        gain.append((sum(right[1]) - sum(right[0])) / len(items))
        pairs = []
        for item in items:
            user = [Message("user", f"{item.fields['question']} {TRIGGER}")]
            ids = engine.bundle.encode(user)
            encode = engine.bundle.tokenizer.encode
            answer = encode(f" {item.answer}.")
            pairs.append(([*ids, *encode("The answer is")], answer))
            pairs.append(([*ids, *encode(f"{item.worked} The answer is")], answer))
        scores = [one.log_prob for one in engine.score(pairs)]
        weighed.append(sum(b - a for a, b in zip(scores[::2], scores[1::2], strict=True)) / len(items))
    return [
        above("share right: step by step minus at once", gain, 0.0, n=ITEMS),
        above(
            "log-probability of the right number after “The answer is”: behind its steps minus without, nats",
            weighed,
            0.0,
            n=ITEMS,
        ),
    ]


CLAIM = Claim(
    16,
    "steps",
    "Thinking step by step makes sums come out right",
    "MultiArith 17.7 → 78.7 % with “Let's think step by step.” (Kojima et al. 2022, arXiv:2205.11916)",
    "150 sums of two steps told as stories, the cooks' tuned models, which saw worked answers in training",
    measure,
)
