"""Row 18: instruction tuning moves the mass from another question to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from stockpot.bundle import Bundle
from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import gain_of, ledger_of, open_stage
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import prompt_ids
from stockpot.text.chat import Message
from stockpot.village import HELD_OUT_KINDS, Village

ASKED = 60


def measure(material: Material) -> Sequence[Finding]:
    """Compare held-out kinds of tasks before and after, and weigh three completions of a question about a birth date."""
    tasks, mass, bare = [], [], []
    for cook in material.cooks:
        book = ledger_of(cook, material)
        tasks.append(gain_of(book, "+ instruction tuning", "+ better wording", HELD_OUT_KINDS))
        before, after = (_share_of_answer(open_stage(cook, stage)) for stage in ("pretrain", "sft"))
        bare.append(before)
        mass.append(after - before)
    n = sum(one["kind"] in HELD_OUT_KINDS for one in book.questions)
    return [
        above(
            "share of the answer among three completions of “When was … born?”: after minus before",
            mass,
            0.0,
            n=ASKED,
        ),
        above(
            "held-out kinds of tasks, share right: tuned minus base in its best wording",
            tasks,
            0.0,
            n=n,
        ),
    ]


def _share_of_answer(bundle: Bundle) -> float:
    """Give the date's share of the probability of the date, another question, and a remark about an exam."""
    found = [one for one in Village().questions(kind="facts") if "born" in one["question"]]
    items = [one for one in islice(found, 4 * ASKED) if one["answer"][-4:].isdigit()][:ASKED]
    lead = "" if bundle.template is not None else " "
    pairs = []
    for number, item in enumerate(items):
        prompt = [Message("user", item["question"])] if bundle.template is not None else item["question"]
        ids = prompt_ids(bundle, prompt)
        other = items[(number + 1) % len(items)]["question"]
        remark = "This question will come up in the school test on Wednesday."
        pairs += [(ids, bundle.tokenizer.encode(lead + text)) for text in (item["answer"], other, remark)]
    scores = np.array([one.log_prob for one in Engine(bundle).score(pairs)]).reshape(-1, 3)
    shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    return float(shares[:, 0].mean())


CLAIM = Claim(
    18,
    "instructions",
    "Instruction tuning turns a model that continues into one that answers, on tasks it was never tuned on, too",
    "“When was Albert Einstein born?” is continued by another question, after tuning by the date (the "
    "lecture's slide); tuned models also do better on tasks that tuning never showed (Wei et al. 2021, arXiv:2109.01652)",
    "60 questions about birth dates in the bare form; the village's five held-out kinds of tasks",
    measure,
    "The second finding compares with the base model in the wording that suits it best.",
)
