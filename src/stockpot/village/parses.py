"""Sentences with their parse: who did what to whom, and whom "she" means, exactly.

Two sentences a record, built from parts that know their words, their grammar and their part in what happens; every layer
of annotation (tags, dependencies, phrases, roles, entities, chains of mentions) is read off the parts. No text is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import DAYS, MEN, WOMEN

__all__ = ["draw_parse"]

_SENDING = ("gave", "brought", "showed", "sold", "lent")
_TAKING = ("bought", "found", "painted", "carried", "dropped", "washed", "kept")
_KNOWING = ("thanked", "helped", "saw", "met", "followed", "greeted")
_ADJECTIVES = ("red", "small", "green", "new", "heavy", "brown", "round", "broken")
_THINGS = ("basket", "lamp", "book", "coat", "spoon", "ladder", "kite", "bell", "letter", "box")
_PLACES = ("market", "mill", "river", "bridge", "church", "school", "bakery", "forest")
_BY = ("at", "near", "behind")


@dataclass(frozen=True)
class _Part:
    """Some words with one head; the other words depend on it.

    Attributes:
        words: spelled.
        tags: (universal, English) tag of each.
        inner: relation of each word to the head; "" for the head itself.
        relation: of the head to the verb.
        phrases: (start, end, label) within the part, outer first.
        role: what the verb makes of it, or "".
        mention: (start, end, kind, who) within the part: an entity and the chain it belongs to, or None.
    """

    words: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    inner: tuple[str, ...]
    relation: str
    phrases: tuple[tuple[int, int, str], ...]
    role: str
    mention: tuple[int, int, str, str] | None


def _name(name: str, relation: str, role: str) -> _Part:
    return _Part((name,), (("PROPN", "NNP"),), ("",), relation, ((0, 1, "NP"),), role, (0, 1, "person", name))


def _pronoun(spelled: str, who: str, kind: str, relation: str, role: str) -> _Part:
    return _Part((spelled,), (("PRON", "PRP"),), ("",), relation, ((0, 1, "NP"),), role, (0, 1, kind, who))


def _thing(dice: Dice, thing: str, relation: str, role: str) -> _Part:
    adjective = (dice.pick(_ADJECTIVES),) if dice.chance(0.6) else ()
    words = (dice.pick(("the", "a")), *adjective, thing)
    tags = (("DET", "DT"), *((("ADJ", "JJ"),) if adjective else ()), ("NOUN", "NN"))
    inner = ("det", *(("amod",) if adjective else ()), "")
    size = len(words)
    return _Part(words, tags, inner, relation, ((0, size, "NP"),), role, (0, size, "object", thing))


def _place(dice: Dice) -> _Part:
    words = (dice.pick(_BY), "the", dice.pick(_PLACES))
    return _Part(
        words,
        (("ADP", "IN"), ("DET", "DT"), ("NOUN", "NN")),
        ("case", "det", ""),
        "obl",
        ((0, 3, "PP"), (1, 3, "NP")),
        "ARGM-LOC",
        (1, 3, "place", words[2]),
    )


def _day(dice: Dice) -> _Part:
    day = dice.pick(DAYS)
    return _Part(
        ("on", day),
        (("ADP", "IN"), ("PROPN", "NNP")),
        ("case", ""),
        "obl",
        ((0, 2, "PP"), (1, 2, "NP")),
        "ARGM-TMP",
        (1, 2, "time", day),
    )


@dataclass
class _Record:
    """The sentences so far, with entities and chains counted over the whole record."""

    sentences: list[dict[str, Any]] = field(default_factory=list)
    entities: list[list[Any]] = field(default_factory=list)
    chains: dict[str, list[list[int]]] = field(default_factory=dict)
    words: int = 0

    def add(self, subject: _Part, verb: str, *others: _Part) -> None:
        """Append a sentence: subject, verb, the other parts, a full stop."""
        verb_at = len(subject.words)
        tokens: list[str] = []
        upos: list[str] = []
        xpos: list[str] = []
        head: list[int] = []
        deprel: list[str] = []
        phrases: list[list[Any]] = []
        roles: list[list[Any]] = []
        for part in (subject, None, *others):
            start = len(tokens)
            if part is None:
                tokens.append(verb)
                upos.append("VERB")
                xpos.append("VBD")
                head.append(0)
                deprel.append("root")
                continue
            own = part.inner.index("")
            for place, (word, (broad, fine)) in enumerate(zip(part.words, part.tags, strict=True)):
                tokens.append(word)
                upos.append(broad)
                xpos.append(fine)
                head.append((verb_at if place == own else start + own) + 1)
                deprel.append(part.relation if place == own else part.inner[place])
            phrases += [[start + a, start + b, label] for a, b, label in part.phrases]
            roles.append([start, len(tokens), part.role])
            if part.mention is not None:
                a, b, kind, who = part.mention
                self.entities.append([self.words + start + a, self.words + start + b, kind])
                self.chains.setdefault(who, []).append([self.words + start + a, self.words + start + b])
        phrases = [[0, len(tokens) + 1, "S"], [verb_at, len(tokens), "VP"], *phrases]
        text = f"{' '.join(tokens)}."
        self.sentences.append(
            {
                "text": text,
                "tokens": [*tokens, "."],
                "upos": [*upos, "PUNCT"],
                "xpos": [*xpos, "."],
                "head": [*head, verb_at + 1],
                "deprel": [*deprel, "punct"],
                "constituents": sorted(phrases, key=lambda one: (one[0], -one[1])),
                "srl": [{"pred": verb_at, "roleset": f"{verb}.01", "args": roles}],
            }
        )
        self.words += len(tokens) + 1


def draw_parse(dice: Dice, side: Side, name: str) -> dict[str, Any]:
    """Draw two sentences and everything that is known of them.

    The record is a document as `judge/probe_data` reads it: ``doc``, ``sentences`` with their layers, ``entities`` as
    ``[start, end, kind]`` and ``coref`` as chains of ``[start, end]``, both over the words of the whole record.
    """

    def text(record: _Record) -> str:
        return " ".join(one["text"] for one in record.sentences)

    record = draw_on(side, lambda: _drawn(dice), text)
    chains = [chain for chain in record.chains.values() if len(chain) > 1]
    return {"doc": name, "sentences": record.sentences, "entities": record.entities, "coref": chains}


def _drawn(dice: Dice) -> _Record:
    record = _Record()
    woman, man = dice.pick(WOMEN), dice.pick(MEN)
    first, second = (woman, man) if dice.chance(0.5) else (man, woman)
    thing = dice.pick(_THINGS)
    extra = [part for part in (_place(dice), _day(dice)) if dice.chance(0.5)]
    subject = _name(first, "nsubj", "ARG0")
    if dice.chance(0.5):
        receiver, gift = _name(second, "iobj", "ARG2"), _thing(dice, thing, "obj", "ARG1")
        record.add(subject, dice.pick(_SENDING), receiver, gift, *extra)
    else:
        record.add(subject, dice.pick(_KNOWING), _name(second, "obj", "ARG1"), *extra)
        thing = ""
    speaks, other = (second, first) if dice.chance(0.5) else (first, second)
    actor = _pronoun("She" if speaks == woman else "He", speaks, "person", "nsubj", "ARG0")
    if thing and dice.chance(0.5):
        record.add(actor, dice.pick(_TAKING), _pronoun("it", thing, "object", "obj", "ARG1"))
    else:
        record.add(
            actor,
            dice.pick(_KNOWING),
            _pronoun("her" if other == woman else "him", other, "person", "obj", "ARG1"),
        )
    return record
