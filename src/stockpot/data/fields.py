"""What a field of a record must hold: text, messages, numbers; and how a wrong one is told.

Each complaint is one ``DataError`` that starts with ``file:line``. It knows no kind of record.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from stockpot.data.reading import shown
from stockpot.errors import DataError
from stockpot.text.chat import ROLES, Message

__all__ = ["Prompt", "answer", "flag", "listed", "messages", "number", "prompt", "short", "text", "type_name"]

Prompt = str | tuple[Message, ...]


def text(value: object, where: str, name: str) -> str:
    """Read text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f'{where}: "{name}" must be text, not {type_name(value)}.')
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "{name}" has half a surrogate pair at character {error.start}: no valid text.'
        ) from None
    return value


def messages(value: object, where: str, name: str) -> tuple[Message, ...]:
    """Read a list of messages, at least one."""
    if isinstance(value, tuple) and all(isinstance(item, Message) for item in value):
        return value
    if not isinstance(value, list):
        raise DataError(f'{where}: "{name}" must be a list of messages, not {type_name(value)}.')
    if not value:
        raise DataError(f'{where}: "{name}" is empty.')
    return tuple(_message(item, where, f"{name}[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str, name: str) -> Message:
    if not isinstance(item, Mapping) or not item.keys() >= {"role", "content"}:
        found = f"found: {listed(item)}" if isinstance(item, Mapping) else type_name(item)
        raise DataError(f'{where}: {name} must have "role" and "content" ({found}).')
    role = item["role"]
    if role not in ROLES:
        raise DataError(f"{where}: {name} has the role {short(role)}.", f"Roles are {', '.join(ROLES)}.")
    return Message(str(role), text(item["content"], where, f"{name}.content"))


def prompt(value: object, where: str) -> Prompt:
    """Read a prompt: text, or messages."""
    if isinstance(value, list | tuple):
        return messages(value, where, "prompt")
    return text(value, where, "prompt")


def answer(value: object, where: str, name: str) -> str:
    """Read an answer: text, or a list with the one message of the assistant."""
    if not isinstance(value, list):
        return text(value, where, name)
    found = messages(value, where, name)
    if len(found) != 1 or found[0].role != "assistant":
        raise DataError(f'{where}: "{name}" must be text or one message of the assistant.')
    return found[0].content


def number(value: object, where: str, name: str) -> float | None:
    """Read a finite number, also from the text of a CSV cell; nothing is None."""
    if value is None or value == "":
        return None
    found = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            found = float(value)
    if not math.isfinite(found):
        raise DataError(f'{where}: "{name}" must be a finite number, not {short(value)}.')
    return found


def flag(value: object, where: str, name: str) -> bool:
    """Read true or false, also from the text of a CSV cell; nothing is False."""
    known = {"": False, "true": True, "false": False, "1": True, "0": False}
    if value is None:
        return False
    if isinstance(value, str) and value.strip().lower() in known:
        return known[value.strip().lower()]
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise DataError(f'{where}: "{name}" must be true or false, not {short(value)}.')


def listed(keys: Any) -> str:
    """List some keys for a message."""
    names = sorted(str(key) for key in keys)
    first = ", ".join(shown(name, 40) for name in names[:8])
    return first + (f" and {len(names) - 8} more" if len(names) > 8 else "")


_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


def type_name(value: object) -> str:
    """Name the type of a value for a message."""
    return _NAMES.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def short(value: object) -> str:
    """Show a value in a message."""
    return shown(repr(value), 40) if isinstance(value, str | int | float) else type_name(value)
