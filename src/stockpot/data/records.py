"""The five kinds of record, and what makes a line one of them.

Decides the kind of a record from its keys and checks every field; the names that other projects use are translated in
``dialects``. Each complaint is one ``DataError`` that starts with ``file:line``. It opens no file, encodes nothing, and
never guesses what a broken record may have meant.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stockpot.data import fields as field
from stockpot.data.dialects import NAMES, translate
from stockpot.data.fields import Prompt, listed
from stockpot.data.reading import shown
from stockpot.errors import DataError
from stockpot.text.chat import Message

__all__ = [
    "FIELD_NAMES",
    "KINDS",
    "ChatRecord",
    "CompletionRecord",
    "ImageRecord",
    "PreferenceRecord",
    "Prompt",
    "Record",
    "TextRecord",
    "as_messages",
    "asked_of",
    "parse_asked",
    "parse_record",
    "text_of",
]


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document: ``{"text"}``."""

    kind: ClassVar[str] = "text"
    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation: ``{"messages": [{"role", "content"}]}``."""

    kind: ClassVar[str] = "messages"
    messages: tuple[Message, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """What is given and what should follow: ``{"prompt", "completion"}``."""

    kind: ClassVar[str] = "completion"
    prompt: Prompt
    completion: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two answers, one better: ``{"prompt", "chosen", "rejected"}`` and, where known, the fields below.

    Attributes:
        margin: by how much it is better, in any unit that is the same for all.
        tie: neither is better; which one is called chosen means nothing then.
        annotator: who said so.
        created: when.
        source: where the two answers come from.
    """

    kind: ClassVar[str] = "preference"
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    tie: bool = False
    annotator: str | None = None
    created: str | None = None
    source: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A picture (the path of its file) and its text: ``{"image", "text"}``, with ``prompt``: what stands between them."""

    kind: ClassVar[str] = "image"
    image: str
    text: str
    where: str = ""
    prompt: str = ""


Record = TextRecord | ChatRecord | CompletionRecord | PreferenceRecord | ImageRecord

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "image": ("image", "text"),
}
"""Each kind and the keys that tell it."""

_OPTIONAL = ("margin", "tie", "annotator", "created", "source")
FIELD_NAMES = frozenset({*(name for names in KINDS.values() for name in names), *_OPTIONAL, *NAMES})
"""Every key that this file reads; columns with other names need not be loaded."""
_TELLING = FIELD_NAMES - {*_OPTIONAL}


def parse_record(value: object, where: str) -> Record:
    """Check one parsed line and turn it into its record.

    Keys that belong to no kind (titles, labels, sources) are left out; null means absent.

    Args:
        value: what the line holds, usually a dict.
        where: ``file:line``, for messages.

    Raises:
        DataError: naming ``where``, what was found and what was expected.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a record is an object with named fields, not {field.type_name(value)}.")
    fields = translate({key: item for key, item in value.items() if item is not None}, where)
    null = [key for key in value if value[key] is None and key in FIELD_NAMES]
    if null and not any(fields.keys() >= set(names) for names in KINDS.values()):
        raise DataError(f'{where}: "{null[0]}" is null.', _EXPECTED)
    return _MAKERS[_kind(fields, where)](fields, where)


def parse_asked(value: object, where: str) -> Record:
    """Check one parsed line that asks something: a record of any kind, or a prompt that nobody has answered yet.

    Raises:
        DataError: as `parse_record`, but for ``{"prompt"}`` alone, which becomes an open conversation.
    """
    if isinstance(value, Mapping):
        keys = {str(key) for key, item in value.items() if item is not None}
        if keys & _TELLING == {"prompt"} and not any(map(_meant, keys - FIELD_NAMES)):
            return ChatRecord(as_messages(field.prompt(value["prompt"], where)), where)
    return parse_record(value, where)


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Read a prompt as messages: plain text is what the user says."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def asked_of(record: Record) -> tuple[tuple[Message, ...], str | None]:
    """Give what a record asks, as messages, and the known answer; a plain text is a question.

    Raises:
        DataError: if the record asks nothing.
    """
    match record:
        case TextRecord():
            return as_messages(record.text), None
        case CompletionRecord():
            return as_messages(record.prompt), record.completion
        case PreferenceRecord():
            return as_messages(record.prompt), None
        case ChatRecord():
            last = record.messages[-1]
            is_answered = last.role == "assistant" and len(record.messages) > 1
            return (record.messages[:-1], last.content) if is_answered else (record.messages, None)
        case _:
            raise DataError(f"{record.where}: a {record.kind} record is no prompt.", "Give prompts.")


def text_of(record: Record) -> str:
    """Give all the text of a record, for training a tokenizer; messages are joined by line ends."""
    match record:
        case TextRecord() | ImageRecord():
            parts = [record.text]
        case ChatRecord():
            parts = [message.content for message in record.messages]
        case CompletionRecord():
            parts = [*_contents(record.prompt), record.completion]
        case PreferenceRecord():
            parts = [*_contents(record.prompt), record.chosen, record.rejected]
    return "\n".join(parts)


def _contents(prompt: Prompt) -> list[str]:
    return [message.content for message in as_messages(prompt)]


# --- which kind ---


def _kind(fields: Mapping[str, Any], where: str) -> str:
    keys = fields.keys()
    found = [kind for kind, names in KINDS.items() if keys >= set(names)]
    if found == ["text", "image"]:  # an image record is the more exact reading
        return "image"
    if len(found) == 1:
        return found[0]
    if found:
        kinds = " and ".join(_spell(kind) for kind in found)
        raise DataError(
            f"{where}: the keys ({listed(keys)}) fit more than one kind: {kinds}.", "Keep one of them."
        )
    raise _no_kind(fields, where)


def _no_kind(fields: Mapping[str, Any], where: str) -> DataError:
    """Name what is missing from the nearest kind, or the key that looks misspelled."""
    keys = set(fields)
    if not keys:
        return DataError(f"{where}: the record is empty.", _EXPECTED)
    near = {key: _meant(key) for key in sorted(keys)}
    hints = [f'"{shown(str(key), 40)}" may mean "{meant}".' for key, meant in near.items() if meant]
    if hints:
        return DataError(f"{where}: unknown key. {hints[0]} Found: {listed(keys)}.", _EXPECTED)
    hits = {kind: len(keys & set(names)) for kind, names in KINDS.items()}
    kind = max(hits, key=lambda name: hits[name])
    if not hits[kind]:
        return DataError(f"{where}: unknown keys: {listed(keys)}.", _EXPECTED)
    missing = " and ".join(f'"{name}"' for name in KINDS[kind] if name not in keys)
    be = "is" if missing.count('"') == 2 else "are"
    return DataError(
        f"{where}: {missing} {be} missing (found: {listed(keys)}).", f"Expected: {_spell(kind)}."
    )


def _meant(key: str) -> str | None:
    """Guess which key a misspelled one means."""
    known = tuple(sorted({name for names in KINDS.values() for name in names}))
    return None if key in known else _near(key, known, 0.75)


@functools.lru_cache(maxsize=1024)  # the records of a file have the same keys
def _near(key: str, known: tuple[str, ...], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=cutoff)), None)


def _spell(kind: str) -> str:
    return "{" + ", ".join(f'"{name}"' for name in KINDS[kind]) + "}"


_EXPECTED = "A record is one of " + " · ".join(_spell(kind) for kind in KINDS) + "."


# --- each kind ---


def _optional_text(fields: Mapping[str, Any], name: str, where: str) -> str | None:
    value = fields.get(name)
    return None if value is None else field.text(value, where, name)


def _preference(fields: Mapping[str, Any], where: str) -> PreferenceRecord:
    for key in fields.keys() - FIELD_NAMES:
        if near := _near(key, _OPTIONAL, 0.8):
            raise DataError(f'{where}: unknown key "{shown(key, 40)}". It may mean "{near}".')
    source = fields.get("source")
    return PreferenceRecord(
        prompt=field.prompt(fields["prompt"], where),
        chosen=field.answer(fields["chosen"], where, "chosen"),
        rejected=field.answer(fields["rejected"], where, "rejected"),
        margin=field.number(fields.get("margin"), where, "margin"),
        tie=field.flag(fields.get("tie"), where, "tie"),
        annotator=_optional_text(fields, "annotator", where),
        created=_optional_text(fields, "created", where),
        source=source if isinstance(source, str) else None,  # elsewhere it may be anything
        where=where,
    )


def _completion(fields: Mapping[str, Any], where: str) -> CompletionRecord:
    said = field.answer(fields["completion"], where, "completion")
    return CompletionRecord(field.prompt(fields["prompt"], where), said, where)


_MAKERS: dict[str, Callable[[Mapping[str, Any], str], Record]] = {
    "text": lambda fields, where: TextRecord(field.text(fields["text"], where, "text"), where),
    "messages": lambda fields, where: ChatRecord(
        field.messages(fields["messages"], where, "messages"), where
    ),
    "completion": _completion,
    "preference": _preference,
    "image": lambda fields, where: ImageRecord(
        field.text(fields["image"], where, "image"),
        field.text(fields["text"], where, "text"),
        where,
        _optional_text(fields, "prompt", where) or "",
    ),
}
