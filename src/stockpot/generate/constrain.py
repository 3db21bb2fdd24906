"""Answers that follow a JSON schema: which ids may come next.

The grammar is llguidance's, an optional package that only this file knows. What is decided here: whitespace is as
Python's ``json`` writes it, an answer ends as soon as nothing can follow, and a schema is compiled before any work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.text.tokenizer import Tokenizer

__all__ = ["Constraint", "Constraints"]

MOST_SCHEMA = 64 << 10  # characters; a larger schema is refused before it is compiled
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraints:
    """Makes constraints for one bundle's tokenizer.

    Raises:
        GenerationError: if llguidance is not installed.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            import llguidance
        except ImportError:
            raise GenerationError(
                "Answers that follow a JSON schema need the package llguidance.",
                "Install it: pip install 'stockpot[constrain]'",
            ) from None
        self._lib: Any = llguidance
        self._vocab = bundle.model.config.vocab_size
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(bundle.tokenizer, bundle.stop_ids))
        self._tokenizer = llguidance.LLTokenizer(wrapper, eos_token=sorted(bundle.stop_ids) or None)

    def follow(self, schema: Mapping[str, Any]) -> Constraint:
        """Begin an answer that follows a schema.

        Raises:
            GenerationError: if the schema is not one, or too large.
        """
        try:
            text = json.dumps(schema)
        except RecursionError:
            raise GenerationError("The JSON schema is nested too deeply.", "Give a flatter schema.") from None
        if len(text) > MOST_SCHEMA:
            raise GenerationError(
                f"The JSON schema has {len(text):,} characters; at most {MOST_SCHEMA:,} are taken.",
                "Give a smaller schema.",
            )
        try:
            grammar = self._lib.LLMatcher.grammar_from_json_schema(text, overrides=STYLE)
            matcher = self._lib.LLMatcher(self._tokenizer, grammar, log_level=0)
            why = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            why = str(error)
        if why:
            raise GenerationError(
                f"The JSON schema cannot be followed: {why.strip().splitlines()[0]}", "Correct the schema."
            )
        return Constraint(matcher, self._vocab)


class Constraint:
    """What one answer may go on with."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Bool[Tensor, " vocab"]:
        """Say which ids may come next; ids that end an answer are among them where it may end.

        Raises:
            GenerationError: as :meth:`push`.
        """
        mask = bytearray(self._matcher.compute_bitmask())
        self._check()
        bits = torch.frombuffer(mask, dtype=torch.uint8)
        spread = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        known = spread.flatten().bool()[: self._vocab]
        return torch.nn.functional.pad(known, (0, self._vocab - known.shape[0]))

    def push(self, id: int) -> None:
        """Take the id that was drawn.

        Raises:
            GenerationError: if the grammar gives up: the schema is too intricate.
        """
        self._matcher.consume_token(id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(
                f"The JSON schema could not be followed: {self._matcher.get_error()}", "Simplify the schema."
            )


class _Vocabulary:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        size = len(tokenizer)
        special = [id for id in range(size) if tokenizer.byte_lengths[id] == 0]
        self.special_token_ids: Sequence[int] = sorted({*special, *(id for id in stop_ids if id < size)})
        hidden = set(self.special_token_ids)
        self.tokens = [
            tokenizer.id_to_token(id).encode() if id in hidden else tokenizer.token_bytes(id)
            for id in range(size)
        ]
        eos = tokenizer.eos_id
        self.eos_token_id = eos if eos is not None else min(stop_ids, default=0)
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)
