"""What one model answers, judged in every way at once: the items of a task, and exact match, edits, nats and Brier score.

Nothing here compares models; `emergence` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stockpot.bundle import Bundle
from stockpot.data.records import CompletionRecord
from stockpot.data.sources import read_records
from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import completion_ids, pad, reading_only
from stockpot.generate.request import Sampling
from stockpot.village import Village
from stockpot.village.arithmetic import ARITHMETIC_KINDS, ArithmeticKind

__all__ = ["Item", "Measured", "arithmetic_task", "edits", "is_arithmetic", "items_of", "measure"]

Floats = NDArray[np.float64]
Item = tuple[str, str]
BATCH = 256
LOGIT_NUMBERS = 1 << 24


def items_of(task: str, limit: int, *, seed: int = 0) -> list[Item]:
    """Return the questions and answers of a task.

    Args:
        task: ``codes``, ``columns`` or ``sums`` of the village, with the number of digits behind a slash (``sums/3``; 4 by
            default), or a file of records with a prompt and a completion.
        limit: at most so many.
        seed: of the village.

    Raises:
        ConfigError, DataError: if there is no such task or file.
    """
    if limit < 1:
        raise ConfigError(f"{limit} items are no question.", "Ask at least one.")
    if is_arithmetic(task):
        kind, digits = arithmetic_task(task)
        drawn = Village(seed).arithmetic("val", limit, kind=kind, digits=digits)
        return [(one["prompt"], one["completion"]) for one in drawn]
    items: list[Item] = []
    for record in read_records(task):
        if not isinstance(record, CompletionRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record; questions have a prompt and a completion.",
                f"Tasks of the village: {', '.join(ARITHMETIC_KINDS)}.",
            )
        if not isinstance(record.prompt, str):
            raise DataError(f"{record.where}: the prompt is a conversation.", "Give the prompt as one text.")
        items.append((record.prompt, record.completion))
        if len(items) == limit:
            break
    return items


def is_arithmetic(task: str) -> bool:
    """Say whether a task is one of the village's, and not a file."""
    return task.partition("/")[0] in ARITHMETIC_KINDS and not Path(task).exists()


def arithmetic_task(task: str) -> tuple[ArithmeticKind, int]:
    """Read a task of the village: its kind, and its digits (4 by default).

    >>> arithmetic_task("sums/3")
    ('sums', 3)

    Raises:
        ConfigError: if it is none.
    """
    name, _, digits = task.partition("/")
    kind = next((one for one in ARITHMETIC_KINDS if one == name), None)
    if kind is None:
        raise ConfigError(f"{task!r} is no task of the village.", f"Tasks: {', '.join(ARITHMETIC_KINDS)}.")
    if digits and not digits.isdigit():
        raise ConfigError(f"{task!r}: {digits!r} is no number of digits.", "Example: sums/4.")
    return kind, int(digits or 4)


@dataclass(frozen=True)
class Measured:
    """What one model made of the items; arrays have one entry an item.

    Attributes:
        exact: whether the greedy answer is the right one, token for token.
        edit: edits from the greedy answer to the right one, per token of it.
        nats: mean negative log-probability of the right tokens, each after the right ones before it.
        brier: mean Brier score of those predictions: 0 is perfect, 2 the worst.
        right: share of those tokens that are the likeliest.
        tokens: length of the right answer.
    """

    exact: Floats
    edit: Floats
    nats: Floats
    brier: Floats
    right: Floats
    tokens: Floats


def measure(bundle: Bundle, items: Sequence[Item]) -> Measured:
    """Ask a decoder all items, and judge each answer in every way.

    Raises:
        GenerationError: if the model is no decoder, or an item does not fit into its context.
    """
    if bundle.model.config.shape != "decoder":
        raise GenerationError("Curves of emergence are measured on decoders.", "Give decoders.")
    prompts = [bundle.encode(prompt) for prompt, _ in items]
    answers = [completion_ids(bundle, answer) for _, answer in items]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    if longest > bundle.context or not all(answers):
        raise GenerationError(
            f"The longest item has {longest} tokens; this model takes {bundle.context}.", "Use shorter items."
        )
    found: dict[str, list[float]] = {name: [] for name in ("nats", "brier", "right")}
    with reading_only(bundle.model):
        for at in range(0, len(items), BATCH):
            part = slice(at, at + BATCH)
            for name, values in _forced(bundle, prompts[part], answers[part]).items():
                found[name] += values
    written = Engine(bundle, slots=256).generate(
        prompts, Sampling(temperature=0.0, max_tokens=max(map(len, answers)))
    )
    said = [list(one.ids)[: len(answer)] for one, answer in zip(written, answers, strict=True)]
    return Measured(
        np.array([float(a == b) for a, b in zip(said, answers, strict=True)]),
        np.array([edits(a, b) / len(b) for a, b in zip(said, answers, strict=True)]),
        np.array(found["nats"]),
        np.array(found["brier"]),
        np.array(found["right"]),
        np.array([float(len(answer)) for answer in answers]),
    )


def _forced(
    bundle: Bundle, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> dict[str, list[float]]:
    """Predict each answer token from the right ones before it; returns means over each answer."""
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, real = pad(rows, bundle.model.device)
    hidden = bundle.model(ids, attention_mask=real, last=0).hidden
    owners = torch.tensor([r for r, answer in enumerate(answers) for _ in answer])
    places = torch.tensor(
        [len(p) - 1 + i for p, answer in zip(prompts, answers, strict=True) for i in range(len(answer))]
    )
    wanted = torch.tensor([token for answer in answers for token in answer], device=ids.device)
    states = hidden[owners.to(ids.device), places.to(ids.device)]
    size = max(1, LOGIT_NUMBERS // bundle.model.config.vocab_size)
    parts: dict[str, list[torch.Tensor]] = {"nats": [], "brier": [], "right": []}
    for some, targets in zip(torch.split(states, size), torch.split(wanted, size), strict=True):
        logs = bundle.model.logits(some).float().log_softmax(-1)
        own = logs.gather(1, targets[:, None])[:, 0]
        parts["nats"].append(-own)
        parts["brier"].append(logs.exp().square().sum(1) - 2 * own.exp() + 1)
        parts["right"].append((logs.argmax(1) == targets).float())
    count = torch.bincount(owners)
    means = {
        name: torch.bincount(owners, weights=torch.cat(values).double().cpu()) / count
        for name, values in parts.items()
    }
    return {name: values.tolist() for name, values in means.items()}


def edits(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the insertions, deletions and replacements from one list to another (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
