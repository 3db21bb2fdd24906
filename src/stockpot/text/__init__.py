"""Text: strings ↔ ids. Tokenizers of eight kinds and chat templates; no torch, no models.

Decides nothing itself: it names what other rooms may use.
"""

from __future__ import annotations

from stockpot.text.chat import DEFAULT_TEMPLATE, ChatIds, ChatTemplate, Message
from stockpot.text.kinds import KINDS
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = [
    "DEFAULT_TEMPLATE",
    "KINDS",
    "SPECIAL_TOKENS",
    "ChatIds",
    "ChatTemplate",
    "Message",
    "Tokenizer",
]
