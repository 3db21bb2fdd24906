"""What the layers of annotation say: tags, trees, roles, entities and chains of mentions as labelled spans.

Each function turns one layer into ``(first span, second span or None, label)`` over words. Files and documents are
`probe_data`'s.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "constituents_of",
    "coreference_pairs",
    "dependencies",
    "entities_of",
    "pronoun_pairs",
    "roles_of",
    "tags_of",
    "word_offsets",
]

Span = tuple[int, int]
Found = tuple[Span, Span | None, str]

_BRACKET = re.compile(r"\(|\)|[^\s()]+")
_WORD = re.compile(r"\w+|[^\w\s]")


def word_offsets(text: str | None, tokens: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
    """Find each word's characters in the text; where the words do not stand in it, they are joined with spaces.

    >>> word_offsets("Don't go.", ["Do", "n't", "go", "."])
    ("Don't go.", ((0, 2), (2, 5), (6, 8), (8, 9)))
    """
    if text is not None:
        spans: list[Span] = []
        at = 0
        for token in tokens:
            start = text.find(token, at)
            if start < 0 or text[at:start].strip():
                break
            at = start + len(token)
            spans.append((start, at))
        if len(spans) == len(tokens):
            return text, tuple(spans)
    spans, at = [], 0
    for token in tokens:
        spans.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), tuple(spans)


def tags_of(tags: Sequence[str]) -> list[Found]:
    """Label each word with its tag."""
    return [((i, i + 1), None, tag) for i, tag in enumerate(tags) if tag != "_"]


def dependencies(heads: Sequence[int], relations: Sequence[str]) -> list[Found]:
    """Label each pair of a word and its head; heads are numbered from 1, and the root (0) has none."""
    return [
        ((i, i + 1), (head - 1, head), relation)
        for i, (head, relation) in enumerate(zip(heads, relations, strict=True))
        if head > 0
    ]


def constituents_of(raw: Mapping[str, Any]) -> list[Found]:
    """Label the phrases of a tree; of several labels over the same words the outermost counts."""
    spans = raw.get("constituents")
    if spans is None:
        spans = [] if raw.get("ptb") is None else list(_phrases(str(raw["ptb"])))
    first: dict[Span, str] = {}
    for start, end, label in spans:
        first.setdefault((start, end), re.split(r"[-=]", label)[0] or label)
    return [(span, None, label) for span, label in first.items()]


def _phrases(tree: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, label) of the phrases of a bracketed tree, outer ones first."""
    stack: list[tuple[int, str, bool]] = []
    found: list[tuple[int, int, int, str]] = []
    pieces, words, at = _BRACKET.findall(tree), 0, 0
    while at < len(pieces):
        piece = pieces[at]
        if piece == "(":
            if pieces[at + 1] == "(":  # an unlabelled root
                stack.append((words, "", False))
            else:
                stack.append((words, pieces[at + 1], False))
                at += 1
        elif piece == ")":
            start, label, is_word = stack.pop()
            if not is_word and label not in ("", "ROOT", "TOP") and words > start:
                found.append((start, words, len(stack), label))
        else:
            start, label, _ = stack.pop()
            stack.append((start, label, True))
            words += label != "-NONE-"
        at += 1
    for start, end, _, label in sorted(found, key=lambda one: (one[0], -one[1], one[2])):
        yield start, end, label


def roles_of(predicates: Sequence[Mapping[str, Any]]) -> list[Found]:
    """Label each pair of a predicate and its argument; references and continuations are left out, as in Tenney et al."""
    return [
        ((one["pred"], one["pred"] + 1), (start, end), role)
        for one in predicates
        for start, end, role in one["args"]
        if not role.startswith(("R-", "C-"))
    ]


def entities_of(raw: Mapping[str, Any], inside: Span | None = None) -> list[Found]:
    """Label entities, given as spans or as B-/I- tags; ``inside`` keeps those in a stretch and counts from its start."""
    if raw.get("entities") is not None:
        low, high = inside or (0, 1 << 60)
        first: dict[Span, str] = {}
        for start, end, label, *_ in raw["entities"]:
            if low <= start and end <= high:
                first.setdefault((start - low, end - low), label)
        return [(span, None, label) for span, label in first.items()]
    found: list[Found] = []
    for i, tag in enumerate(raw.get("ner") or ()):
        kind = tag.partition("-")[2]
        if tag.startswith("B-"):
            found.append(((i, i + 1), None, kind))
        elif tag.startswith("I-") and found and found[-1][0][1] == i and found[-1][2] == kind:
            found[-1] = ((found[-1][0][0], i + 1), None, kind)
    return found


def coreference_pairs(
    chains: Sequence[Sequence[Sequence[int]]], inside: Span, rng: random.Random
) -> list[Found]:
    """Pair each mention with the nearest one before it of its chain ("same") and with one of another chain ("other").

    The two labels are equally frequent, so that guessing is right half of the time.
    """
    low, high = inside
    mentions = sorted(
        (start - low, end - low, number)
        for number, chain in enumerate(chains)
        for start, end in chain
        if low <= start and end <= high
    )
    found: list[Found] = []
    for at, (start, end, number) in enumerate(mentions):
        before = [one for one in mentions[:at] if one[1] <= start]
        same = [one for one in before if one[2] == number]
        others = [one for one in before if one[2] != number]
        if same and others:
            near, other = same[-1], rng.choice(others)
            found.append(((near[0], near[1]), (start, end), "same"))
            found.append(((other[0], other[1]), (start, end), "other"))
    return found


def pronoun_pairs(raw: Mapping[str, Any]) -> tuple[list[str], list[Found]]:
    """Read a record of GAP: a pronoun and two names, each of which it means or not."""
    spans = [found.span() for found in _WORD.finditer(raw["Text"])]
    tokens = [raw["Text"][start:end] for start, end in spans]

    def words(offset: int, spelled: str) -> Span:
        end = offset + len(spelled)
        inside = [i for i, (a, b) in enumerate(spans) if a < end and b > offset]
        return inside[0], inside[-1] + 1

    pronoun = words(int(raw["Pronoun-offset"]), raw["Pronoun"])
    found: list[Found] = []
    for name in ("A", "B"):
        is_same = str(raw[f"{name}-coref"]).upper() == "TRUE"
        span = words(int(raw[f"{name}-offset"]), raw[name])
        found.append((span, pronoun, "same" if is_same else "other"))
    return tokens, found
