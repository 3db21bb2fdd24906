"""Row 17: what a model cannot know, it reads."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.bundle import Bundle
from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import open_stage
from stockpot.errors import CheckpointError
from stockpot.judge.tasks import Item
from stockpot.prompt.answering import passages_prompt
from stockpot.prompt.index import Hit
from stockpot.prompt.shelf import Shelf
from stockpot.stages.ledger_asking import Asked, answer, asked_of
from stockpot.text.chat import Message
from stockpot.weights.known import find_known
from stockpot.weights.store import load

NEWS, ASSISTANT = 40, "smollm2"


def measure(material: Material) -> Sequence[Finding]:
    """Ask about facts newer than the models, without and with the best passage; each seed is another village."""
    villages = [
        asked_of(("village/news",), limit=NEWS // 2, examples=None, documents=(), seed=s)
        for s in material.seeds
    ]
    found = [_best_passages(asked) for asked in villages]
    holds = [
        sum(item.answer in passages[item.id] for item in asked.items) / len(asked.items)
        for asked, passages in zip(villages, found, strict=True)
    ]
    findings = [above("the best passage holds the answer, share (recall@1)", holds, 0.9, n=NEWS)]
    bundle = _assistant()
    if bundle is not None:
        gains = [
            _gain(bundle, asked, {one.id: _numbered(bundle, one, passages[one.id]) for one in asked.items})
            for asked, passages in zip(villages, found, strict=True)
        ]
        name = "SmolLM2-135M-Instruct"
        right, chosen = zip(*gains, strict=True)
        findings += [
            above(f"{name}, share right in writing: open book minus closed book", right, 0.0, n=NEWS),
            above(f"{name}, the right one of the given answers, the same", chosen, 0.0, n=NEWS),
        ]
    else:
        material.told.append("SmolLM2 was not on this machine (stockpot pull smollm2).")
    before = {one.id: f"{found[0][one.id]} {one.question}" for one in villages[0].items}
    both = [_gain(open_stage(cook, "sft"), villages[0], before) for cook in material.cooks]
    return [
        *findings,
        above("the cooks' tuned models, the same", [right for right, _ in both], 0.0, n=NEWS),
        above(
            "the cooks' tuned models, the right one of the given answers",
            [one for _, one in both],
            0.0,
            n=NEWS,
        ),
    ]


def _assistant() -> Bundle | None:
    try:
        find_known(ASSISTANT)
    except CheckpointError:
        return None
    return load(ASSISTANT)


def _best_passages(asked: Asked) -> dict[str, str]:
    shelf = Shelf(asked.passages, [one.question for one in asked.items])
    return {item.id: shelf.find(item.question, 1)[0].text for item in asked.items}


def _numbered(bundle: Bundle, item: Item, passage: str) -> str:
    """Put the passage before the question as `stockpot ask` does."""
    prompt, _ = passages_prompt(bundle, item.question, [Hit(passage, "", "", "", 0.0, {})])
    message = prompt[0]
    assert isinstance(message, Message), f"{ASSISTANT} has a chat template"
    return message.content


def _gain(bundle: Bundle, asked: Asked, put: dict[str, str]) -> tuple[float, float]:
    """Give the gain in replies that are right and in answers that are chosen rightly, of questions asked as ``put``."""
    bare = {one.id: one.question for one in asked.items}
    closed, opened = (answer(bundle, asked.items, way, max_tokens=24, chat=True) for way in (bare, put))
    n = len(asked.items)
    right = sum(opened[one].right - closed[one].right for one in opened) / n
    return right, sum((opened[one].choice or 0) - (closed[one].choice or 0) for one in opened) / n


CLAIM = Claim(
    17,
    "retrieval",
    "A passage put before the question answers what the model cannot know",
    "NVIDIA's employees in 2024: 167 in the training data, 2,000 in the passage (the lecture's slide; Lewis et al. 2020, "
    "arXiv:2005.11401)",
    "the 40 pieces of news each of three villages, found by words (BM25), put before SmolLM2-135M-Instruct as `stockpot ask` "
    "does and before the cooks' tuned models",
    measure,
    "Each piece tells the old state beside the new one, in sentences that no training text has. The cooks' models learned to "
    "read from notices about strangers, which may be asked about in the same ways. On seed 0 they answer all questions about "
    "work, most about numbers of workers and none about addresses, whose sentence they misread.",
)
