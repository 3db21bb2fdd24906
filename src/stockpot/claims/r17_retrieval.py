"""Row 17: what a model cannot know, it reads."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import open_stage
from stockpot.prompt.shelf import Shelf
from stockpot.stages.ledger_asking import answer, asked_of

NEWS = ("village/news",)


def measure(material: Material) -> Sequence[Finding]:
    """Ask the tuned models about facts newer than their text, without and with the best passage."""
    asked = asked_of(NEWS, limit=1000, examples=None, documents=())
    others = asked_of(("village",), limit=20, examples=None, documents=()).items
    shelf = Shelf(asked.passages, [one.question for one in (*asked.items, *others)])
    found = {item.id: shelf.find(item.question, 1)[0].text for item in asked.items}
    holds = sum(item.answer in found[item.id] for item in asked.items) / len(asked.items)
    gain, picked = [], []
    for cook in material.cooks:
        bundle = open_stage(cook, "sft")
        closed = answer(
            bundle, asked.items, {one.id: one.question for one in asked.items}, max_tokens=24, chat=True
        )
        put = {one.id: f"{found[one.id]} {one.question}" for one in asked.items}
        opened = answer(bundle, asked.items, put, max_tokens=24, chat=True)
        n = len(asked.items)
        gain.append(sum(opened[one].right - closed[one].right for one in opened) / n)
        picked.append(sum((opened[one].choice or 0) - (closed[one].choice or 0) for one in opened) / n)
    n = len(asked.items)
    return [
        above("share right in writing: open book minus closed book", gain, 0.0, n=n),
        above("the right one of the given answers: open book minus closed book", picked, 0.0, n=n),
        above("the best passage holds the answer, share (recall@1)", [holds] * len(material.cooks), 0.9, n=n),
    ]


CLAIM = Claim(
    17,
    "retrieval",
    "A passage put before the question answers what the model cannot know",
    "NVIDIA's employees in 2024: 167 in the training data, 2,000 in the passage (the lecture's slide; Lewis et al. 2020, "
    "arXiv:2005.11401)",
    "40 pieces of village news from after the text, found by words (BM25), the cooks' tuned models",
    measure,
)
