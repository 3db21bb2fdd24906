"""Prompts to answer, from records of any kind: what is asked as ids and as text, and the known answer if there is one."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.bundle import Bundle
from stockpot.data.records import asked_of, parse_asked
from stockpot.data.sources import read_records
from stockpot.errors import DataError
from stockpot.stages.assemble import Progress
from stockpot.train.rollouts import Asked

__all__ = ["PAGE", "read_prompts"]

PAGE = "Question: {}\nAnswer:"
"""How a model that holds no conversations is asked; its answer ends with the line."""


def read_prompts(
    sources: Sequence[str], bundle: Bundle, max_tokens: int, report: Progress, *, limit: int | None = None
) -> list[Asked]:
    """Read prompts; those that leave no room for ``max_tokens`` within the context are left out and counted.

    A model without a chat template is asked on a page of questions and answers.

    Args:
        sources: completion, chat or preference records, prompts that nobody has answered, or plain texts.
        bundle: the model that will answer, which encodes them.
        max_tokens: longest answer.
        report: hears what was left out.
        limit: how many prompts.

    Raises:
        DataError: if none is left.
    """
    found: list[Asked] = []
    overlong, is_chat = 0, bundle.template is not None
    for record in read_records(sources, parse=parse_asked):
        if len(found) == limit:
            break
        prompt, answer = asked_of(record)
        text = prompt[-1].content
        ids = bundle.encode(list(prompt) if is_chat else PAGE.format(text))
        if len(ids) + max_tokens > bundle.context:
            overlong += 1
            continue
        found.append(Asked(tuple(ids), text, answer, tuple(prompt) if is_chat and len(prompt) > 1 else ()))
    if overlong:
        text = f"{overlong:,} prompts leave no room for {max_tokens} tokens and are left out"
        report({"kind": "note", "text": text})
    if not found:
        raise DataError(
            f"No prompt leaves room for {max_tokens} tokens in a context of {bundle.context}.",
            "Give shorter prompts or a smaller max_tokens.",
        )
    report({"kind": "note", "text": f"{len(found):,} prompts"})
    return found
