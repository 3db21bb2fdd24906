"""Show exactly what a task asks: the prompt as the model reads it, the completions, and how they are compared.

For reading by a person, before a score is believed. Uses a tokenizer, never the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.bundle import Bundle
from stockpot.judge.requests import Asked, ask_item
from stockpot.judge.tasks import Left, Scorer, Task, Wording

__all__ = ["explain"]

HOW = {
    "acc": "the largest sum of log-probabilities",
    "acc_norm": "the largest log-probability per character of the choice",
    "acc_bytes": "the largest log-probability per UTF-8 byte of the choice",
    "acc_pmi": "the largest gain in log-probability over the same choice without the question",
    "grade": "the worth of the choice with the largest sum of log-probabilities",
    "right_mass": "the share of probability that falls on right choices",
}


def explain(bundle: Bundle, task: Task, wording: Wording | None = None, *, count: int = 2) -> str:
    """Describe a task's scoring and its first items, line by line."""
    default: Wording = "plain" if bundle.template is None or task.scorer.kind != "both" else "chat"
    wording = wording or default
    lines = [
        f"{task.name} (version {task.version}): {len(task.items)} items, scored by {task.scorer.kind}, put as {wording}",
        *_scoring(task.scorer),
    ]
    if task.bad:
        lines.append(f"{len(task.bad)} records are no items, the first: {task.bad[0].why}")
    for item in task.items[:count]:
        asked = ask_item(bundle, item, task.scorer, wording)
        lines += ["", f"--- {item.id}"]
        lines += [asked.why] if isinstance(asked, Left) else _item(bundle, asked, task.scorer)
    return "\n".join(lines)


def _scoring(scorer: Scorer) -> list[str]:
    if scorer.kind == "choices":
        names = scorer.measures or ("acc", "acc_norm")
        names = (*names, "acc_pmi") if scorer.pmi and "acc_pmi" not in names else names
        return [f"{name}: {HOW.get(name, name)}" for name in names]
    if scorer.kind == "both":
        return [
            "exact: the greedy answer equals the right one after normalisation",
            f"choice: {HOW['acc_bytes']}",
        ]
    if scorer.kind == "word":
        return ["acc: whether greedy decoding writes the last word", "perplexity: of the last word"]
    if scorer.kind == "text":
        return ["bits_per_byte: nats of all tokens / ln 2 / UTF-8 bytes; each token is scored once"]
    lines = [f"an answer ends at {', '.join(map(repr, scorer.until))} or after {scorer.max_tokens} tokens"]
    if scorer.kind == "code":
        return [*lines, f"pass@k: tests are run in a sandbox, {scorer.samples} program(s) a problem"]
    for name, how in scorer.extract.items():
        what = f"the match number {how.which} of {how.pattern}" if how.kind == "regex" else how.kind
        lines.append(f"{name}: {what} of what it writes, compared with the right answer")
    if scorer.ignore:
        lines.append(f"removed on both sides before comparing: {', '.join(scorer.ignore)}")
    return lines


def _item(bundle: Bundle, asked: Asked, scorer: Scorer) -> list[str]:
    item, lines = asked.item, []
    if asked.prompt is not None:
        lines.append(f"goes on from ({len(asked.prompt)} tokens): {_decoded(bundle, asked.prompt)!r}")
    texts = item.choices or (item.answer,)
    seen: tuple[int, ...] | None = None
    for number, (before, scored) in enumerate(asked.pairs):
        if before != seen:
            lines.append(f"behind ({len(before)} tokens): {_decoded(bundle, before)!r}")
            seen = before
        worth = f" worth {item.worth[number]:g}" if item.choices else ""
        size = (
            f", {len(texts[number])} characters, {asked.sizes[number]} bytes"
            if number < len(asked.sizes) and scorer.kind != "text"
            else ""
        )
        lines.append(f"  scores{worth}: {_decoded(bundle, scored)!r} ({len(scored)} tokens{size})")
    lines.append(f"right: {item.answer!r}")
    return lines


def _decoded(bundle: Bundle, ids: Sequence[int]) -> str:
    return bundle.tokenizer.decode([id for id in ids if id < bundle.tokenizer.vocab_size])
